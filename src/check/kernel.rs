//! Whether the kernel carries services, and kube-proxy.

use super::{Finding, Surroundings, UNSEEN};
use crate::config::Mode;
use crate::node::genetlink;
use crate::node::kernel_proxy::{IPVS_DEVICE, is_link_local};
use crate::node::kube_proxy::Answer;
use crate::node::nftables::Rules;

/// What is said of a kernel proxy that is at work where this one is to serve always.
const BOTH: &str = "take kube-proxy off this node, or run with --mode fallback";

pub(super) async fn ipvs(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "ipvs";
    match genetlink::has_ipvs() {
        Ok(false) => Finding::ok(SUBJECT, "the kernel offers no IPVS"),
        Ok(true) if around.config.mode == Mode::Fallback => {
            Finding::ok(SUBJECT, "the kernel offers IPVS")
        }
        Ok(true) => match addresses(around).await {
            Ok(Some(addresses)) if !addresses.is_empty() => Finding::warning(
                SUBJECT,
                format!("the kernel offers IPVS, with {} addresses", addresses.len()),
                BOTH,
            ),
            Ok(_) => Finding::ok(SUBJECT, "the kernel offers IPVS, which nobody uses"),
            Err(error) => Finding::unknown(SUBJECT, "the list of addresses", error),
        },
        Err(error) => Finding::unknown(SUBJECT, "the list of generic netlink families", error),
    }
}

/// Of kube-ipvs0; `None` without it.
async fn addresses(around: &Surroundings<'_>) -> std::io::Result<Option<Vec<std::net::IpAddr>>> {
    let Some(device) = around.node.device(IPVS_DEVICE).await? else {
        return Ok(None);
    };
    let addresses = around.node.addresses().await?;
    let here = addresses
        .into_iter()
        .filter(|(index, address)| *index == device.index && !is_link_local(*address));
    Ok(Some(here.map(|(_, address)| address).collect()))
}

pub(super) async fn ipvs_device(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "kube-ipvs0";
    let addresses = match addresses(around).await {
        Ok(Some(addresses)) => addresses,
        Ok(None) => return Finding::ok(SUBJECT, format!("there is no {IPVS_DEVICE}")),
        Err(error) => return Finding::unknown(SUBJECT, "the list of addresses", error),
    };
    let Some(first) = addresses.first() else {
        return Finding::ok(SUBJECT, format!("{IPVS_DEVICE} has no addresses"));
    };
    let count = addresses.len();
    let has = format!("{IPVS_DEVICE} has {count} addresses, such as {first}");
    match genetlink::has_ipvs() {
        Ok(true) if around.config.mode == Mode::Fallback => Finding::ok(SUBJECT, has),
        Ok(true) => Finding::warning(
            SUBJECT,
            format!("{has}: what is sent to them goes to the kernel's IPVS"),
            BOTH,
        ),
        Ok(false) | Err(_) => Finding::failure(
            SUBJECT,
            format!(
                "{has}, but the kernel offers no IPVS: what is sent to them reaches nobody, as \
                 they are the node's own"
            ),
            format!("ip link delete {IPVS_DEVICE}"),
        ),
    }
}

pub(super) fn netfilter(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "netfilter";
    let rules = match Rules::read() {
        Ok(rules) => rules,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let found = format!("{UNSEEN} (CAP_NET_ADMIN): netfilter's rules");
            return Finding::warning(SUBJECT, found, "as root: kube-tun-proxy check");
        }
        Err(error) => return Finding::unknown(SUBJECT, "netfilter's rules", error),
    };
    let fallback = around.config.mode == Mode::Fallback;
    let rewrite = "they rewrite what is sent to services before it is routed";
    if let Some(table) = rules.nftables.first() {
        let found = format!("kube-proxy's nftables rules are there ({table}): {rewrite}");
        if fallback {
            return Finding::ok(SUBJECT, found);
        }
        let tables = rules.nftables.iter();
        let delete: Vec<String> = tables
            .map(|table| format!("nft delete table {table}"))
            .collect();
        let delete = delete.join("; ");
        return Finding::warning(SUBJECT, found, format!("{BOTH}; what it left: {delete}"));
    }
    if let Some(table) = rules.iptables.first() {
        let found =
            format!("kube-proxy's iptables rules are there (KUBE-SERVICES in {table}): {rewrite}");
        return if fallback {
            Finding::ok(SUBJECT, found)
        } else {
            let mend = format!("{BOTH}; what it left: kube-proxy --cleanup");
            Finding::warning(SUBJECT, found, mend)
        };
    }
    if let Some(table) = rules.legacy_tables.first() {
        let found =
            format!("the old iptables has a table {table}, which may hold rules of kube-proxy");
        return if fallback {
            Finding::ok(SUBJECT, found)
        } else {
            let mend = "see whether it does: iptables-legacy -t nat -S KUBE-SERVICES; if so: \
                        kube-proxy --cleanup";
            Finding::warning(SUBJECT, found, mend)
        };
    }
    Finding::ok(SUBJECT, "no rules of kube-proxy")
}

pub(super) fn kube_proxy(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "kube-proxy";
    let at = around.kube_proxy_at;
    let answers = |how: &str| format!("kube-proxy answers on {at}, {how}");
    match (around.kube_proxy, around.config.mode) {
        (Answer::Nobody, Mode::Always) => {
            Finding::ok(SUBJECT, format!("no kube-proxy answers on {at}"))
        }
        (Answer::Nobody, Mode::Fallback) => Finding::warning(
            SUBJECT,
            format!("no kube-proxy answers on {at}: there is nothing to fall back from"),
            "if it listens elsewhere, say where with --kube-proxy-healthz ADDRESS:PORT",
        ),
        (Answer::OneOfUs, _) => Finding::ok(SUBJECT, format!("a kube-tun-proxy answers on {at}")),
        (Answer::Well, Mode::Fallback) => Finding::ok(SUBJECT, answers("well")),
        (Answer::Unwell, Mode::Fallback) => Finding::warning(
            SUBJECT,
            answers("but not well"),
            "kubectl -n kube-system logs -l k8s-app=kube-proxy",
        ),
        (Answer::Well, Mode::Always) => Finding::warning(SUBJECT, answers("well"), BOTH),
        (Answer::Unwell, Mode::Always) => Finding::warning(SUBJECT, answers("but not well"), BOTH),
    }
}
