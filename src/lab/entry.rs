//! The way in: fresh user, network and mount namespaces for the whole process.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getegid, geteuid, getpid};

use super::error::LabError;
use super::netlink;

/// Moves the process into a fresh user, network and mount namespace.
///
/// Call it while the process has a single thread. As root every id that exists
/// outside exists inside; as an ordinary user the own id becomes 0 and there is
/// no other. Mounts become private, loopback comes up, and nothing outside is
/// touched, now or later.
///
/// # Errors
///
/// [`LabError::Threads`] when called too late; otherwise the machine forbids
/// it, and the error says what to type.
pub fn enter() -> Result<(), LabError> {
    let threads = thread_count();
    if threads != 1 {
        return Err(LabError::Threads(threads));
    }
    if geteuid().is_root() {
        enter_user_namespace_as_root()?;
    } else {
        enter_user_namespace_as_user()?;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|errno| {
        LabError::Enter {
            step: "cannot make network and mount namespaces",
            cause: errno.into(),
            mend: user_namespace_mend(),
        }
    })?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|errno| LabError::Enter {
        step: "cannot make mounts private",
        cause: errno.into(),
        mend: user_namespace_mend(),
    })?;
    netlink::loopback_up().map_err(|cause| LabError::Enter {
        step: "cannot bring up loopback in the new namespace",
        cause,
        mend: user_namespace_mend(),
    })
}

/// Opens `/dev/net/tun`, as the proxy will have to.
///
/// # Errors
///
/// [`LabError::Tun`] with what to type.
pub fn require_tun() -> Result<(), LabError> {
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    match opened {
        Ok(_) => Ok(()),
        Err(cause) => Err(LabError::Tun {
            mend: tun_mend(&cause).to_owned(),
            cause,
        }),
    }
}

/// Threads of this process, counted by the kernel.
fn thread_count() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// An ordinary user may map one id: the own one (user_namespaces(7)).
fn enter_user_namespace_as_user() -> Result<(), LabError> {
    let (uid, gid) = (geteuid(), getegid());
    unshare_user()?;
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", &format!("0 {uid} 1\n"))?;
    write_map("/proc/self/gid_map", &format!("0 {gid} 1\n"))
}

/// Maps of more than the own id are written by somebody who stays outside, with
/// CAP_SETUID there: a child forked before the namespace is made.
fn enter_user_namespace_as_root() -> Result<(), LabError> {
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|cause| LabError::Enter {
            step: "cannot read the present id map",
            cause,
            mend: "mount /proc".to_owned(),
        })
    };
    let uid_map = identity_map(&read("/proc/self/uid_map")?);
    let gid_map = identity_map(&read("/proc/self/gid_map")?);
    let parent = getpid();
    let failed = |cause: io::Error| LabError::Enter {
        step: "cannot fork the helper that writes the id maps",
        cause,
        mend: "free some memory or processes (ulimit -u)".to_owned(),
    };
    let (mut ours, mut theirs) = UnixStream::pair().map_err(failed)?;
    // SAFETY: the process has one thread (checked by the caller), so that the
    // child may do whatever it likes between fork and _exit.
    match unsafe { fork() }.map_err(|errno| failed(errno.into()))? {
        ForkResult::Child => {
            drop(ours);
            let code = match write_maps_for(&mut theirs, parent, &uid_map, &gid_map) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            // SAFETY: _exit ends the child without running the parent's
            // exit handlers a second time.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let unshared = unshare_user();
            if unshared.is_ok() {
                // A child that died early is told by its status below.
                drop(ours.write_all(b"1"));
            }
            drop(ours);
            let status = waitpid(child, None).map_err(|errno| failed(errno.into()))?;
            unshared?;
            if status == WaitStatus::Exited(child, 0) {
                Ok(())
            } else {
                // A uid 0 without CAP_SETUID (a bare container): map itself.
                enter_maps_of_root_alone()
            }
        }
    }
}

fn enter_maps_of_root_alone() -> Result<(), LabError> {
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", "0 0 1\n")?;
    write_map("/proc/self/gid_map", "0 0 1\n")
}

/// Waits for the parent to be in its namespace, then writes its maps. Ends
/// without a word when the parent hangs up instead.
fn write_maps_for(
    parent_is_in: &mut UnixStream,
    parent: nix::unistd::Pid,
    uid_map: &str,
    gid_map: &str,
) -> io::Result<()> {
    let mut byte = [0];
    if parent_is_in.read(&mut byte)? == 0 {
        return Ok(());
    }
    fs::write(format!("/proc/{parent}/uid_map"), uid_map)?;
    fs::write(format!("/proc/{parent}/gid_map"), gid_map)
}

/// The ids that exist here, mapped to themselves: from lines of `inside outside
/// count` (user_namespaces(7)).
fn identity_map(present: &str) -> String {
    let mut map = String::new();
    for line in present.lines() {
        let mut words = line.split_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (words.next(), words.next(), words.next()) {
            map.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    map
}

fn unshare_user() -> Result<(), LabError> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| LabError::UserNamespace {
        cause: errno.into(),
        mend: user_namespace_mend(),
    })
}

fn write_map(path: &'static str, text: &str) -> Result<(), LabError> {
    fs::write(path, text).map_err(|cause| LabError::Enter {
        step: "cannot map the own user id into the new user namespace",
        cause,
        mend: user_namespace_mend(),
    })
}

/// The switches that are known to forbid it, as this machine has them now.
fn user_namespace_mend() -> String {
    let reads =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|found| found.trim() == value);
    if reads("/proc/sys/user/max_user_namespaces", "0") {
        "sudo sysctl user.max_user_namespaces=15000".to_owned()
    } else if reads("/proc/sys/user/max_net_namespaces", "0") {
        "sudo sysctl user.max_net_namespaces=15000".to_owned()
    } else if !geteuid().is_root() && reads("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sudo sysctl kernel.unprivileged_userns_clone=1, or run as root".to_owned()
    } else if reads(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root".to_owned()
    } else {
        "in a container: start it with --privileged, or with a seccomp and AppArmor profile that \
         allows unshare and mount (docker run --security-opt seccomp=unconfined --security-opt \
         apparmor=unconfined); elsewhere: a kernel with CONFIG_USER_NS and CONFIG_NET_NS, and \
         user.max_user_namespaces, user.max_net_namespaces above the number in use"
            .to_owned()
    }
}

fn tun_mend(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => {
            "sudo modprobe tun; if the file is still missing: sudo mkdir -p /dev/net && sudo mknod \
             -m 0666 /dev/net/tun c 10 200; in a container: start it with --device /dev/net/tun"
        }
        Some(Errno::EACCES) => {
            "sudo chmod 0666 /dev/net/tun (to keep it over a reboot: echo 'KERNEL==\"tun\", \
             MODE=\"0666\"' | sudo tee /etc/udev/rules.d/50-tun.rules)"
        }
        Some(Errno::EPERM) => {
            "the container may not open the device: start it with --device /dev/net/tun (a device \
             rule `c 10:200 rwm`)"
        }
        Some(Errno::ENODEV | Errno::ENXIO) => "sudo modprobe tun",
        _ => "sudo modprobe tun && sudo chmod 0666 /dev/net/tun",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_that_exists_is_mapped_to_itself() {
        assert_eq!(
            identity_map("         0          0 4294967295\n"),
            "0 0 4294967295\n"
        );
        assert_eq!(
            identity_map("0 100000 65536\n65536 1000 1\n"),
            "0 0 65536\n65536 65536 1\n"
        );
    }

    #[test]
    fn the_mend_fits_the_error() {
        let mend = |errno| tun_mend(&io::Error::from_raw_os_error(errno));
        assert!(mend(libc::EACCES).contains("chmod 0666 /dev/net/tun"));
        assert!(mend(libc::ENOENT).contains("modprobe tun"));
        assert!(mend(libc::EPERM).contains("--device /dev/net/tun"));
    }

    #[test]
    fn a_process_with_threads_is_told_so() {
        // Held by a lock, so that there is a second thread for sure: with
        // --test-threads=1 the harness has none.
        let held = std::sync::Mutex::new(());
        std::thread::scope(|scope| {
            let guard = held.lock().unwrap();
            scope.spawn(|| drop(held.lock()));
            let error = enter().unwrap_err();
            assert!(matches!(error, LabError::Threads(n) if n > 1), "{error}");
            drop(guard);
        });
    }
}
