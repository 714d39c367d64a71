//! The count of one flow on its real server.

use std::sync::Arc;

use super::RealServer;

/// Counts one flow on one real server for as long as it lives.
///
/// It starts as inactive, as `ip_vs_bind_dest` does; a TCP flow is active while
/// it is established. A UDP flow stays inactive, as ipvsadm shows it. Dropping
/// it takes the flow off the count.
#[derive(Debug)]
pub struct Connection {
    real_server: Arc<RealServer>,
    active: bool,
    /// Keeps the persistence entry alive that sends the client here: the kernel's
    /// `n_control`.
    control: Option<Arc<()>>,
}

impl Connection {
    /// Counts a flow to `real_server`, from before the first attempt to connect.
    pub fn new(real_server: Arc<RealServer>) -> Self {
        real_server.bind();
        Self {
            real_server,
            active: false,
            control: None,
        }
    }

    /// The real server it counts on.
    pub fn real_server(&self) -> &Arc<RealServer> {
        &self.real_server
    }

    /// Both ends of a TCP flow are up. Saying it twice counts once.
    pub fn established(&mut self) {
        self.set_active(true);
    }

    /// One end of a TCP flow has closed. Saying it twice counts once.
    pub fn closing(&mut self) {
        self.set_active(false);
    }

    pub(super) fn hold(&mut self, control: Arc<()>) {
        self.control = Some(control);
    }

    fn set_active(&mut self, active: bool) {
        if self.active != active {
            self.active = active;
            self.real_server.set_active(active);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.real_server.unbind(self.active);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(real_server: &RealServer) -> (u32, u32, u64) {
        (
            real_server.active(),
            real_server.inactive(),
            real_server.connections(),
        )
    }

    #[test]
    fn a_flow_is_counted_once_in_the_state_it_is_in() {
        let real_server = Arc::new(RealServer::new("10.1.65.5:443".parse().unwrap(), 1));
        let mut tcp = Connection::new(Arc::clone(&real_server));
        assert_eq!(counts(&real_server), (0, 1, 1));
        tcp.established();
        tcp.established();
        assert_eq!(counts(&real_server), (1, 0, 1));
        let udp = Connection::new(Arc::clone(&real_server));
        assert_eq!(counts(&real_server), (1, 1, 2));
        tcp.closing();
        tcp.closing();
        assert_eq!(counts(&real_server), (0, 2, 2));
        drop(udp);
        assert_eq!(counts(&real_server), (0, 1, 2));
        tcp.established();
        drop(tcp);
        assert_eq!(counts(&real_server), (0, 0, 2));
    }
}
