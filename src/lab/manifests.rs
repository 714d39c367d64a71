//! Objects of the Kubernetes API as text, and a directory that holds them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::error::LabError;
use super::temp_dir::TempDir;
use crate::service::Protocol;

/// A port of a Service and of its EndpointSlices.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name; empty for the one unnamed port a Service may have.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The Service's port.
    pub port: u16,
    /// The endpoints' port.
    pub target: u16,
}

impl Port {
    /// A TCP port.
    pub fn tcp(name: &str, port: u16, target: u16) -> Self {
        Self {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            port,
            target,
        }
    }

    /// A UDP port.
    pub fn udp(name: &str, port: u16, target: u16) -> Self {
        Self {
            protocol: Protocol::Udp,
            ..Self::tcp(name, port, target)
        }
    }
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it serves; an endpoint that goes away may still.
    pub serving: bool,
    /// Whether it is going away.
    pub terminating: bool,
    /// The node it is on.
    pub node: Option<String>,
}

impl Endpoint {
    /// One that is ready.
    pub fn ready(address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
        }
    }
}

/// A Service of type ClusterIP.
pub fn service(namespace: &str, name: &str, cluster_ips: &[IpAddr], ports: &[Port]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {namespace}\n  name: {name}\nspec:\n"
    );
    if let Some(first) = cluster_ips.first() {
        text.push_str(&format!(
            "  clusterIP: {:?}\n  clusterIPs:\n",
            first.to_string()
        ));
    }
    for ip in cluster_ips {
        push(&mut text, format_args!("  - {:?}\n", ip.to_string()));
    }
    text.push_str("  ports:\n");
    for port in ports {
        push_port(&mut text, "  ", port, port.port);
        push(&mut text, format_args!("    targetPort: {}\n", port.target));
    }
    text
}

/// An EndpointSlice of a Service. Its address type is that of the first
/// endpoint, IPv4 without one.
pub fn endpoint_slice(
    namespace: &str,
    service: &str,
    slice: &str,
    ports: &[Port],
    endpoints: &[Endpoint],
) -> String {
    let family = match endpoints.first() {
        Some(Endpoint {
            address: IpAddr::V6(_),
            ..
        }) => "IPv6",
        _ => "IPv4",
    };
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         namespace: {namespace}\n  name: {slice}\n  labels:\n    \
         kubernetes.io/service-name: {service}\naddressType: {family}\nports:\n"
    );
    for port in ports {
        push_port(&mut text, "", port, port.target);
    }
    text.push_str(if endpoints.is_empty() {
        "endpoints: []\n"
    } else {
        "endpoints:\n"
    });
    for endpoint in endpoints {
        push(
            &mut text,
            format_args!(
                "- addresses: [{:?}]\n  conditions: {{ready: {}, serving: {}, terminating: {}}}\n",
                endpoint.address.to_string(),
                endpoint.ready,
                endpoint.serving,
                endpoint.terminating
            ),
        );
        if let Some(node) = &endpoint.node {
            push(&mut text, format_args!("  nodeName: {node}\n"));
        }
    }
    text
}

/// A Service and one EndpointSlice for each address family, as one file of
/// several documents. Endpoints are addresses that are ready.
pub fn service_with_endpoints(
    namespace: &str,
    name: &str,
    cluster_ips: &[IpAddr],
    ports: &[Port],
    endpoints: &[IpAddr],
) -> String {
    let mut text = service(namespace, name, cluster_ips, ports);
    for (family, is_ipv4) in [("v4", true), ("v6", false)] {
        if cluster_ips.iter().any(|ip| ip.is_ipv4() == is_ipv4) {
            let of_family = endpoints.iter().filter(|ip| ip.is_ipv4() == is_ipv4);
            let ready: Vec<Endpoint> = of_family.map(|&ip| Endpoint::ready(ip)).collect();
            text.push_str("---\n");
            let slice = format!("{name}-{family}");
            text.push_str(&endpoint_slice(namespace, name, &slice, ports, &ready));
        }
    }
    text
}

/// A Node with labels.
pub fn node(name: &str, address: IpAddr, labels: &[(&str, &str)]) -> String {
    let mut text = format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n");
    if !labels.is_empty() {
        text.push_str("  labels:\n");
    }
    for (key, value) in labels {
        push(&mut text, format_args!("    {key}: {value:?}\n"));
    }
    let address = address.to_string();
    push(
        &mut text,
        format_args!("status:\n  addresses:\n  - {{type: InternalIP, address: {address:?}}}\n"),
    );
    text
}

/// A directory of manifests that changes as an editor or `kubectl` would change
/// it: each file is replaced whole, by rename.
#[derive(Debug)]
pub struct Manifests {
    directory: TempDir,
}

impl Manifests {
    /// An empty directory.
    ///
    /// # Errors
    ///
    /// [`LabError::File`].
    pub fn new() -> Result<Self, LabError> {
        Ok(Self {
            directory: TempDir::new()?,
        })
    }

    /// Where it is, for `--manifests`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file, or replaces it.
    ///
    /// # Errors
    ///
    /// [`LabError::File`].
    pub fn write(&self, file: &str, text: &str) -> Result<(), LabError> {
        // A dot in front: no source of manifests reads it half-written.
        let unfinished = self.path().join(format!(".{file}.new"));
        let finished = self.path().join(file);
        fs::write(&unfinished, text)
            .and_then(|()| fs::rename(&unfinished, &finished))
            .map_err(|cause| LabError::File {
                path: finished,
                cause,
            })
    }

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// [`LabError::File`], as when there is none.
    pub fn remove(&self, file: &str) -> Result<(), LabError> {
        let path = self.path().join(file);
        fs::remove_file(&path).map_err(|cause| LabError::File { path, cause })
    }

    /// Writes a service with endpoints that are ready, as `<name>.yaml`; called
    /// again, it changes the endpoints.
    ///
    /// # Errors
    ///
    /// [`LabError::File`].
    pub fn serve(
        &self,
        name: &str,
        cluster_ips: &[IpAddr],
        ports: &[Port],
        endpoints: &[IpAddr],
    ) -> Result<(), LabError> {
        let text = service_with_endpoints("default", name, cluster_ips, ports, endpoints);
        self.write(&format!("{name}.yaml"), &text)
    }

    /// The files in it, by name.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.path())?;
        let mut files: Vec<PathBuf> = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        files.sort();
        Ok(files)
    }
}

/// The virtual address and port of a service port, for clients.
pub fn at(cluster_ip: IpAddr, port: &Port) -> SocketAddr {
    SocketAddr::new(cluster_ip, port.port)
}

fn push_port(text: &mut String, indent: &str, port: &Port, number: u16) {
    let protocol = port.protocol;
    push(
        text,
        format_args!("{indent}- port: {number}\n{indent}  protocol: {protocol}\n"),
    );
    if !port.name.is_empty() {
        push(text, format_args!("{indent}  name: {}\n", port.name));
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = text.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Service};
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    use super::*;

    #[test]
    fn what_is_written_is_what_the_api_has() {
        let vips: [IpAddr; 2] = ["10.0.0.3".parse().unwrap(), "fd00:10::3".parse().unwrap()];
        let ports = [Port::tcp("https", 443, 8443), Port::udp("dns", 53, 5353)];
        let text = service("kube-system", "web", &vips, &ports);
        let service: Service = serde_saphyr::from_str(&text).unwrap();
        let spec = service.spec.unwrap();
        assert_eq!(spec.cluster_ips.unwrap(), ["10.0.0.3", "fd00:10::3"]);
        let port = &spec.ports.unwrap()[1];
        assert_eq!((port.port, port.protocol.as_deref()), (53, Some("UDP")));
        assert_eq!(port.name.as_deref(), Some("dns"));

        let mut endpoint = Endpoint::ready("fd00:10:1:65::5".parse::<IpAddr>().unwrap());
        endpoint.node = Some("node2".to_owned());
        let text = endpoint_slice("kube-system", "web", "web-1", &ports, &[endpoint]);
        let slice: EndpointSlice = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(slice.address_type, "IPv6");
        assert_eq!(
            slice.metadata.labels.unwrap()["kubernetes.io/service-name"],
            "web"
        );
        assert_eq!(slice.ports.unwrap()[0].port, Some(8443));
        let endpoint = &slice.endpoints.unwrap()[0];
        assert_eq!(endpoint.node_name.as_deref(), Some("node2"));
        assert_eq!(endpoint.conditions.as_ref().unwrap().ready, Some(true));

        let empty = endpoint_slice("kube-system", "web", "web-1", &ports, &[]);
        let empty: EndpointSlice = serde_saphyr::from_str(&empty).unwrap();
        assert!(empty.endpoints.unwrap().is_empty());

        let zone = [("topology.kubernetes.io/zone", "a")];
        let node: Node = serde_saphyr::from_str(&node("master", vips[0], &zone)).unwrap();
        assert_eq!(
            node.metadata.labels.unwrap()["topology.kubernetes.io/zone"],
            "a"
        );
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let manifests = Manifests::new().unwrap();
        manifests.write("a.yaml", "one").unwrap();
        manifests.write("a.yaml", "two").unwrap();
        assert_eq!(
            manifests.files().unwrap(),
            [manifests.path().join("a.yaml")]
        );
        assert_eq!(
            fs::read_to_string(manifests.path().join("a.yaml")).unwrap(),
            "two"
        );
        manifests.remove("a.yaml").unwrap();
        assert!(manifests.files().unwrap().is_empty());
    }
}
