//! Flannel's subnet file: what `flanneld` writes when it has its lease (flannel
//! `pkg/subnet/subnet.go`, WriteSubnetFile).

use std::io;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};

/// Where flannel writes it, unless told otherwise (`-subnet-file`).
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// FLANNEL_NETWORK: the pods' addresses of all nodes.
    pub networks: Vec<IpNet>,
    /// FLANNEL_SUBNET: this node's part of it.
    pub subnet: Ipv4Net,
}

impl Subnet {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    ///
    /// It cannot be read, or lacks one of the two.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> io::Result<Self> {
        let value = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once('='));
            let found = lines.find(|(key, _)| key.trim() == name);
            found.map(|(_, value)| value.trim()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("it has no {name}"))
            })
        };
        let wrong = |name: &str, value: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name}={value} is no network"),
            )
        };
        let networks = value("FLANNEL_NETWORK")?;
        let subnet = value("FLANNEL_SUBNET")?;
        Ok(Self {
            networks: networks
                .split(',')
                .map(|net| net.parse().map_err(|_| wrong("FLANNEL_NETWORK", networks)))
                .collect::<io::Result<_>>()?,
            subnet: subnet
                .parse()
                .map_err(|_| wrong("FLANNEL_SUBNET", subnet))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_as_flannel_writes_it() {
        let text = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.15.1/24\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let subnet = Subnet::parse(text).unwrap();
        assert_eq!(subnet.networks, ["10.1.0.0/16".parse::<IpNet>().unwrap()]);
        assert_eq!(subnet.subnet, "10.1.15.1/24".parse().unwrap());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        for (text, says) in [
            ("", "it has no FLANNEL_NETWORK"),
            ("FLANNEL_NETWORK=10.1.0.0/16\n", "it has no FLANNEL_SUBNET"),
            (
                "FLANNEL_NETWORK=ten\nFLANNEL_SUBNET=10.1.15.1/24",
                "FLANNEL_NETWORK=ten is no network",
            ),
        ] {
            assert_eq!(Subnet::parse(text).unwrap_err().to_string(), says);
        }
    }
}
