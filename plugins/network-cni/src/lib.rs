//! Connects containers to networks by CNI plugins, as the isolator of this name does in Mesos.
//!
//! ```text
//! prepare   record, network namespace, ADD ──▶ the container enters the namespace by descriptor
//! cleanup   DEL, then the namespace and the record are removed
//! recover   DEL for containers that nobody knows
//! ```
//!
//! All is done before the container has a process, and after it has none any more, so that no container can interfere
//! with it. Nested containers enter the namespace that the plugin has kept, not that of a process.

mod attach;
mod config;
mod dns;
mod files;
mod networks;
mod orphans;
mod ports;
mod request;
mod results;
mod store;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_plugin_api::model::{ContainerClass, NetworkRequest};
use cofferdam_plugin_api::network;
use cofferdam_plugin_api::prelude::*;

use crate::attach::Attacher;
use crate::config::{Config, DefaultDns};
use crate::dns::Dns;
use crate::networks::{Network, Networks, is_identifier};
use crate::orphans::Shared;
use crate::store::{Record, Store};

/// How long CNI plugins are run before the agent serves requests. What takes longer must not delay it.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

struct Cni {
    host: Host,
    shared: Arc<Shared>,
    default_dns: DefaultDns,
    reports_metrics: bool,
    checks: bool,
    collects: bool,
}

/// What the agent keeps: for the status, and for nested containers that share the networks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// The container whose network namespace it is in; `None` for that of the host.
    owner: Option<String>,
    hostname: String,
    networks: Vec<Joined>,
    /// Settings of the networks; `None` for those of the host.
    dns: Option<Dns>,
}

/// A network that a container is connected to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Joined {
    name: String,
    interface: String,
    addresses: Vec<IpAddr>,
    labels: Json,
    port_mappings: Json,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Cni {
    const NAME: &'static str = "network/cni";
    const NESTING: bool = true;
    // What that one mounts would cover the files.
    const AFTER: &'static [&'static str] = &["filesystem/linux"];
    const FEATURES: &'static [&'static str] = &[
        "launch.bind_descriptor",
        "launch.enter_descriptor",
        "launch.hostname",
        "launcher.linux",
        "service.leases",
    ];
    const HANDLES: &'static [&'static str] = &["hostname", "networks"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let networks = match (&config.network_cni_config_dir, &config.network_cni_plugins_dir) {
            (None, None) => None,
            (Some(directory), Some(plugins)) => Some(Networks::new(directory, plugins)?),
            (Some(_), None) => return Err(missing("network_cni_plugins_dir", "network_cni_config_dir")),
            (None, Some(_)) => return Err(missing("network_cni_config_dir", "network_cni_plugins_dir")),
        };
        if networks.is_some() && host.agent().launcher != "linux" {
            return Err(Error::new("networks need the `linux` launcher; remove `network_cni_config_dir`"));
        }
        config.default_container_dns.check()?;
        if config.network_cni_timeout.0.is_zero() {
            return Err(Error::new("`network_cni_timeout` is 0, so that no CNI plugin could be run"));
        }
        if let Some(networks) = &networks {
            for (path, why) in networks.load()?.skipped {
                warn!(file = %path.display(), "the network configuration is not used: {why}");
            }
        }
        let persist = config.network_cni_root_dir_persist;
        let directory = if persist { host.work_directory() } else { host.runtime_directory() };
        let store = Store::new(directory, persist);
        Ok(Self {
            shared: Arc::new(Shared::new(networks, store, config.network_cni_timeout.0)),
            host,
            default_dns: config.default_container_dns,
            reports_metrics: config.network_cni_metrics,
            checks: config.network_cni_check,
            collects: config.network_cni_gc,
        })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let mut attacher = self.shared.attacher(Some(request.deadline()));
        let (mut valid, mut unknown, mut is_complete) = (Vec::new(), Vec::new(), true);
        attacher.end = Instant::now().checked_add(RECOVERY_LIMIT);
        for id in self.shared.store.ids()? {
            let running = request.containers.iter().find(|container| container.id.as_str() == id);
            let is_orphan = request.orphans.iter().any(|orphan| orphan.as_str() == id);
            if running.is_none() && !is_orphan {
                if attacher.remaining().is_zero() {
                    unknown.push(id);
                    continue;
                }
                match attacher.delete(&id) {
                    Ok(()) => info!(container = id, "released the networks of an unknown container"),
                    Err(error) => {
                        warn!(container = id, "cannot release the networks of an unknown container: {error}");
                        unknown.push(id);
                    }
                }
                continue;
            }
            let record = match self.shared.store.read(&id) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    warn!(container = id, "{error}");
                    is_complete = false;
                    continue;
                }
            };
            if let Some(pid) = running.and_then(|running| running.details.pid)
                && let Err(error) = self.shared.store.restore_namespace(&record, pid)
            {
                warn!(container = id, "cannot keep its network namespace: {error}");
            }
            valid.push((record, running.is_some()));
        }
        // An agent may have been killed before it put a container into it.
        self.shared.store.release_if_empty()?;
        self.collect(&valid, is_complete, &attacher);
        if self.checks {
            let running = valid.iter().filter(|(_, is_running)| *is_running);
            self.check(running.map(|(record, _)| record), &attacher);
        }
        self.report_status(&attacher);
        if !unknown.is_empty() {
            self.shared.release_later(unknown)?;
        }
        Ok(Recovery::new())
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let named: Vec<NetworkRequest> =
            container.networks.iter().filter(|network| network.name.is_some()).cloned().collect();
        check_unnamed(container)?;
        let is_debug = container.class == ContainerClass::Debug;
        if is_debug && !(container.networks.is_empty() && container.linux.hostname.is_none()) {
            return Err(Error::invalid(
                "a debug container is in the networks of its parent, and cannot have networks or a host name of its own",
            ));
        }
        if !named.is_empty() {
            return self.attach(container, &named);
        }
        if container.id.is_nested() && container.networks.is_empty() {
            let parent: State = container.parent_state()?.unwrap_or_default();
            if let Some(owner) = &parent.owner {
                return self.join(container, owner, &parent);
            }
        }
        if is_debug { Ok(Prepared::new()) } else { self.host_network(container) }
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let state: State = container.state()?;
        // The traffic of containers that share a network is that of the one that owns it.
        if !self.reports_metrics || state.owner.as_deref() != Some(container.id()) {
            return Ok(Usage::default());
        }
        let Some(namespace) = self.shared.store.namespace(container.id())? else {
            return Ok(Usage::default());
        };
        let counters = network::counters(namespace).context("cannot read the counters of its interfaces")?;
        let own = || state.networks.iter().filter_map(|joined| counters.get(&joined.interface));
        let sum = |field: fn(&network::Counters) -> u64| own().map(field).fold(0, u64::saturating_add);
        Ok(Usage::default()
            .with("net_rx_packets", sum(|counters| counters.received_packets))
            .with("net_rx_bytes", sum(|counters| counters.received_bytes))
            .with("net_rx_errors", sum(|counters| counters.received_errors))
            .with("net_rx_dropped", sum(|counters| counters.received_dropped))
            .with("net_tx_packets", sum(|counters| counters.sent_packets))
            .with("net_tx_bytes", sum(|counters| counters.sent_bytes))
            .with("net_tx_errors", sum(|counters| counters.sent_errors))
            .with("net_tx_dropped", sum(|counters| counters.sent_dropped)))
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        let state: State = container.state()?;
        if state.networks.is_empty() {
            return Ok(Status::default());
        }
        let infos: Vec<Json> = state.networks.iter().map(Joined::info).collect();
        Ok(Status::default().with("network_infos", json!(infos)))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        if !self.shared.store.contains(container.id()) {
            return Ok(());
        }
        let attacher = self.shared.attacher(Some(container.deadline()));
        self.shared.release_now(container.id(), &attacher)?;
        ports::release(&self.host, container.id())
    }
}

impl Drop for Cni {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// Launches.
impl Cni {
    /// Connects a container to networks of its own.
    fn attach(&self, container: &NewContainer, requested: &[NetworkRequest]) -> Result<Prepared> {
        let id = container.id.as_str();
        let Some(networks) = &self.shared.networks else {
            return Err(Error::invalid(
                "the container requests a network, but none are configured: set `network_cni_config_dir` and \
                 `network_cni_plugins_dir`",
            ));
        };
        if !is_identifier(id) {
            return Err(Error::invalid(format!(
                "a container with a network needs an id of letters, digits, `.`, `_` and `-` that begins with a letter or \
                 digit, not `{id}`"
            )));
        }
        let hostname = request::hostname(container)?;
        let attachments = request::attachments(networks, requested)?;
        let attacher = self.shared.attacher(Some(container.deadline()));
        self.shared
            .release_now(id, &attacher)
            .context("an earlier container of this id still has networks")?;
        let (mut record, namespace) = self.shared.store.create(id)?;
        ports::acquire(&self.host, container, requested)?;
        let mut state = State { owner: Some(id.to_owned()), hostname, ..State::default() };
        for (attachment, request) in attachments.into_iter().zip(requested) {
            let (name, interface) = (attachment.network.name.clone(), attachment.interface.clone());
            let outcome = attacher.add(&mut record, attachment)?;
            let default = self.default_dns.of_network(&name);
            let dns = if outcome.dns.nameservers.is_empty() { default } else { Some(&outcome.dns) };
            if let Some(dns) = dns {
                state.dns.get_or_insert_default().merge(dns);
            }
            state.networks.push(Joined {
                name,
                interface,
                addresses: outcome.addresses,
                labels: if request.labels.is_empty() { Json::Null } else { request::labels(request) },
                port_mappings: request::port_mappings(request),
            });
        }
        let prepared = Prepared::new().clone_namespace(Namespace::Uts).hostname(&state.hostname);
        self.enter(prepared, container, namespace, &state)?.state(&state)
    }

    /// Puts a nested container into the networks of its parent.
    fn join(&self, container: &NewContainer, owner: &str, parent: &State) -> Result<Prepared> {
        let namespace = self.shared.store.namespace(owner)?.ok_or_else(|| {
            Error::new(format!("the network namespace of container `{owner}` does not exist any more"))
        })?;
        let mut state = parent.clone();
        if container.class == ContainerClass::Debug {
            return Prepared::new()
                .enter_namespace(Namespace::Uts)
                .enter_by_descriptor(Namespace::Network, namespace)
                .state(&state);
        }
        let prepared = match container.linux.hostname {
            None => Prepared::new().enter_namespace(Namespace::Uts),
            Some(_) => {
                state.hostname = request::hostname(container)?;
                Prepared::new().clone_namespace(Namespace::Uts).hostname(&state.hostname)
            }
        };
        self.enter(prepared, container, namespace, &state)?.state(&state)
    }

    /// Enters a network namespace, and mounts the files that tell a container about its network.
    fn enter(
        &self,
        prepared: Prepared,
        container: &NewContainer,
        namespace: OwnedFd,
        state: &State,
    ) -> Result<Prepared> {
        let resolv_conf = match &state.dns {
            Some(dns) => dns.file(),
            None => dns::of_host()?,
        };
        // As in Mesos: of the first network that has addresses.
        let addresses = state.networks.iter().map(|joined| &joined.addresses).find(|all| !all.is_empty());
        let hosts = files::hosts(&state.hostname, addresses.map_or(&[], Vec::as_slice));
        let mut prepared = prepared
            .environment("LIBPROCESS_IP", "0.0.0.0")
            .clone_namespace(Namespace::Mount)
            .enter_by_descriptor(Namespace::Network, namespace);
        let hostname = format!("{}\n", state.hostname);
        for (path, content) in
            [(files::HOSTNAME, &hostname), (files::HOSTS, &hosts), (files::RESOLV_CONF, &resolv_conf)]
        {
            prepared = files::provide(prepared, container.rootfs.as_deref(), path, content)?;
        }
        Ok(prepared)
    }

    /// Gives a container with a root file system and the network of the host the host's files.
    fn host_network(&self, container: &NewContainer) -> Result<Prepared> {
        let dns = self.default_dns.of_host();
        let rootfs = container.rootfs.as_deref();
        let mut prepared = Prepared::new();
        if let Some(rootfs) = rootfs {
            prepared = prepared.clone_namespace(Namespace::Mount);
            prepared = files::share(prepared, rootfs, files::HOSTS)?;
            // With a UTS namespace, its name is another one.
            if container.linux.hostname.is_none()
                && !self.host.agent().chain.iter().any(|plugin| plugin == "namespaces/uts")
            {
                prepared = files::share(prepared, rootfs, files::HOSTNAME)?;
            }
            if dns.is_none() {
                prepared = files::share(prepared, rootfs, files::RESOLV_CONF)?;
            }
        }
        if let Some(dns) = dns {
            prepared = prepared.clone_namespace(Namespace::Mount);
            prepared = files::provide(prepared, rootfs, files::RESOLV_CONF, &dns.file())?;
        }
        if container.linux.hostname.is_some() {
            let hostname = request::hostname(container)?;
            prepared = prepared.clone_namespace(Namespace::Uts).hostname(&hostname);
            if let Some(rootfs) = rootfs {
                prepared = files::provide(prepared, Some(rootfs), files::HOSTNAME, &format!("{hostname}\n"))?;
            }
        }
        Ok(prepared)
    }
}

/// Recovery.
impl Cni {
    /// Checks the networks of running containers.
    fn check<'a>(&self, records: impl Iterator<Item = &'a Record>, attacher: &Attacher<'_>) {
        for record in records {
            let id = &record.id;
            if attacher.remaining().is_zero() {
                return warn!("no time is left to check the networks of `{id}` and further containers");
            }
            if let Err(error) = attacher.check(record) {
                warn!(container = id, "its network is not as the CNI plugins have left it: {error}");
            }
        }
    }

    /// Tells CNI plugins which attachments exist, if configured.
    fn collect(&self, records: &[(Record, bool)], is_complete: bool, attacher: &Attacher<'_>) {
        // One that an agent has started before it was killed would remove what exists now.
        if let Err(error) = self.shared.store.end_request_of_all() {
            return warn!("a CNI plugin that an earlier agent has started runs on: {error}");
        }
        if !self.collects {
            return;
        }
        // It would release the addresses of a container that may be running.
        if !is_complete {
            return warn!(
                "CNI plugins are not told to remove what they do not need, as a record cannot be read"
            );
        }
        for network in self.known_networks() {
            let valid: Vec<(String, String)> = records
                .iter()
                .flat_map(|(record, _)| record.attachments.iter().map(move |attachment| (record, attachment)))
                .filter(|(_, attachment)| attachment.remaining > 0 && attachment.network.name == network.name)
                .map(|(record, attachment)| (record.id.clone(), attachment.interface.clone()))
                .collect();
            if let Err(error) = attacher.collect(&network, &valid) {
                warn!(network = network.name, "cannot tell CNI plugins which attachments exist: {error}");
            }
        }
    }

    /// Logs which networks no container could be attached to now.
    fn report_status(&self, attacher: &Attacher<'_>) {
        for network in self.known_networks() {
            if attacher.remaining().is_zero() {
                return;
            }
            if let Err(error) = attacher.status(&network) {
                warn!(network = network.name, "the network is not ready: {error}");
            }
        }
    }

    /// The networks that are configured now.
    fn known_networks(&self) -> Vec<Network> {
        let Some(networks) = &self.shared.networks else { return Vec::new() };
        match networks.load() {
            Ok(loaded) => loaded.networks.into_values().collect(),
            Err(error) => {
                warn!("cannot read the networks: {error}");
                Vec::new()
            }
        }
    }
}

impl Joined {
    /// As the Mesos message `NetworkInfo`.
    fn info(&self) -> Json {
        let address = |address: &IpAddr| {
            let protocol = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            json!({ "protocol": protocol, "ip_address": address.to_string() })
        };
        let mut info = json!({
            "name": self.name,
            "ip_addresses": self.addresses.iter().map(address).collect::<Vec<Json>>(),
        });
        if !self.labels.is_null() {
            info["labels"] = self.labels.clone();
        }
        if self.port_mappings.as_array().is_some_and(|mappings| !mappings.is_empty()) {
            info["port_mappings"] = self.port_mappings.clone();
        }
        info
    }
}

/// The network of the host maps no ports and has no addresses to choose.
fn check_unnamed(container: &NewContainer) -> Result<()> {
    let has_more = |network: &NetworkRequest| {
        network.name.is_none() && !(network.port_mappings.is_empty() && network.addresses.is_empty())
    };
    if container.networks.iter().any(has_more) {
        return Err(Error::new(
            "port mappings or addresses are requested without the `name` of a network; the network of the host has none",
        ));
    }
    Ok(())
}

fn missing(key: &str, other: &str) -> Error {
    Error::new(format!("`{key}` is missing, which `{other}` needs; set both or none"))
}

#[cfg(test)]
mod tests;
