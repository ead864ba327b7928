//! The configuration, with the names of Mesos's flags.

use std::path::PathBuf;
use std::time::Duration;

use cofferdam_plugin_api::config::TimeSpan;
use cofferdam_plugin_api::prelude::*;

use crate::dns::Dns;

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories with CNI plugins, separated by colons. Without this key and `network_cni_config_dir`, all containers
    /// have the network of the host.
    pub network_cni_plugins_dir: Option<String>,
    /// Directory with network configurations. It is read for every launch, so changes need no restart.
    pub network_cni_config_dir: Option<PathBuf>,
    /// Whether what is known of containers' networks survives a reboot, so that addresses can be released after it.
    pub network_cni_root_dir_persist: bool,
    /// Whether network statistics are reported.
    pub network_cni_metrics: bool,
    /// How long one run of a CNI plugin may take before it is killed.
    pub network_cni_timeout: TimeSpan,
    /// Whether running containers are checked with CHECK when the agent starts. What is found is logged.
    pub network_cni_check: bool,
    /// Whether CNI plugins are told with GC which attachments exist when the agent starts. They remove all others, so no
    /// other program may use the same networks.
    pub network_cni_gc: bool,
    /// DNS settings of containers whose networks have none.
    pub default_container_dns: DefaultDns,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            network_cni_plugins_dir: None,
            network_cni_config_dir: None,
            network_cni_root_dir_persist: false,
            network_cni_metrics: true,
            network_cni_timeout: TimeSpan(Duration::from_secs(20)),
            network_cni_check: false,
            network_cni_gc: false,
            default_container_dns: DefaultDns::default(),
        }
    }
}

#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultDns {
    /// Settings by kind or name of the network.
    pub mesos: Vec<DefaultDnsEntry>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
pub struct DefaultDnsEntry {
    /// Whether this is for the network of the host or for CNI networks.
    pub network_mode: NetworkMode,
    /// Name of the CNI network; all that have no entry of their own if not set.
    #[serde(default)]
    pub network_name: Option<String>,
    /// The settings.
    pub dns: Dns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, PluginConfig)]
pub enum NetworkMode {
    #[serde(rename = "HOST")]
    Host,
    #[serde(rename = "CNI")]
    Cni,
}

impl DefaultDns {
    /// Checks what the schema cannot express.
    pub fn check(&self) -> Result<()> {
        for (index, entry) in self.mesos.iter().enumerate() {
            let refused =
                |why: &str| Err(Error::new(format!("`default_container_dns.mesos[{index}]` {why}")));
            if entry.network_mode == NetworkMode::Host && entry.network_name.is_some() {
                return refused("has a `network_name`, which the network of the host has not");
            }
            let same = |other: &DefaultDnsEntry| {
                (other.network_mode, &other.network_name) == (entry.network_mode, &entry.network_name)
            };
            if self.mesos[..index].iter().any(same) {
                return refused("is for the same network as an earlier one");
            }
            entry.dns.check().context(format!("`default_container_dns.mesos[{index}].dns`"))?;
        }
        Ok(())
    }

    /// The settings for the network of the host.
    pub fn of_host(&self) -> Option<&Dns> {
        self.find(|entry| entry.network_mode == NetworkMode::Host)
    }

    /// The settings for a CNI network: its own, or else those for all.
    pub fn of_network(&self, name: &str) -> Option<&Dns> {
        let cni = |entry: &DefaultDnsEntry| entry.network_mode == NetworkMode::Cni;
        self.find(|entry| cni(entry) && entry.network_name.as_deref() == Some(name))
            .or_else(|| self.find(|entry| cni(entry) && entry.network_name.is_none()))
    }

    fn find(&self, wanted: impl Fn(&DefaultDnsEntry) -> bool) -> Option<&Dns> {
        self.mesos.iter().find(|entry| wanted(entry)).map(|entry| &entry.dns)
    }
}
