//! Runs CNI plugins: ADD in the order of a network's list, DEL in reverse order, CHECK, GC.
//!
//! An attachment is recorded before the first plugin is run, and forgotten when DEL has succeeded for each of its plugins.
//! Both survive the agent, so every ADD is followed by one DEL per plugin, whatever happens in between.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use cofferdam_plugin_api::command::{Output, Program};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{Deadline, network};
use serde_json::Map;

use crate::networks::{Network, Networks, Version, kind};
use crate::results::{self, Outcome};
use crate::store::{Attachment, Record, Store};

/// Where CNI plugins find the programs that they use, such as `iptables`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is left of the time of a call to report a plugin that did not end in time.
const MARGIN: Duration = Duration::from_millis(500);

/// An operation of CNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
    Check,
    Gc,
}

impl Verb {
    const fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
        }
    }
}

/// Attaches and detaches containers, within the time of one call.
pub struct Attacher<'a> {
    /// `None` if no networks are configured.
    pub networks: Option<&'a Networks>,
    pub store: &'a Store,
    /// For one run of a plugin.
    pub timeout: Duration,
    /// Of the call; `None` outside of calls.
    pub deadline: Option<Deadline>,
}

impl Attacher<'_> {
    /// Attaches a container to a network.
    pub fn add(&self, record: &mut Record, attachment: Attachment) -> Result<Outcome> {
        let network = attachment.network.clone();
        record.attachments.push(attachment);
        self.store.write(record)?;
        let attached = self.run_add(record, &network);
        let (result, outcome) =
            attached.context(format!("cannot attach it to the network `{}`", network.name))?;
        if let Some(attachment) = record.attachments.last_mut() {
            attachment.result = Some(result);
        }
        self.store.write(record)?;
        Ok(outcome)
    }

    fn run_add(&self, record: &mut Record, network: &Network) -> Result<(Json, Outcome)> {
        let namespace = self.store.namespace_path(&record.id);
        let mut result = Json::Null;
        for (index, plugin) in network.plugins.iter().enumerate() {
            let attachment = record.attachments.last().ok_or_else(|| Error::new("there is no attachment"))?;
            let previous = Some(&result).filter(|result| !result.is_null());
            let target = Target { id: &record.id, attachment, namespace: Some(&namespace) };
            match self.run(Verb::Add, network, plugin, Some(target), previous, None) {
                Ok(printed) => result = printed,
                Err(Failed { error, is_rejection }) => {
                    if let Some(attachment) = record.attachments.last_mut()
                        && is_rejection
                    {
                        attachment.rejected = Some(index);
                        self.store.write(record)?;
                    }
                    return Err(error);
                }
            }
        }
        let outcome = results::parse(network.version, &result)
            .context(format!("the CNI plugin `{}`", network.plugins.last().map(kind).unwrap_or_default()))?;
        Ok((result, outcome))
    }

    /// Detaches a container from all networks, and removes what is kept of it. Succeeds if nothing is.
    pub fn delete(&self, id: &str) -> Result<()> {
        if !self.store.contains(id) {
            return Ok(());
        }
        self.store.wait_for_request(id, self.time_left())?;
        if let Some(mut record) = self.store.read(id)? {
            self.run_del(&mut record)?;
        }
        self.store.remove(id)
    }

    fn run_del(&self, record: &mut Record) -> Result<()> {
        let namespace = self.store.namespace(&record.id)?.map(|_| self.store.namespace_path(&record.id));
        if let Some(namespace) = self.store.namespace(&record.id)? {
            restore(record, &namespace);
        }
        let mut errors = Vec::new();
        for index in (0..record.attachments.len()).rev() {
            if let Err(error) = self.detach(record, index, namespace.as_deref()) {
                errors.push(error.causes().join(": "));
            }
        }
        record.attachments.retain(|attachment| attachment.remaining > 0);
        if errors.is_empty() { Ok(()) } else { Err(Error::new(errors.join("; ")).retryable()) }
    }

    /// Detaches a container from one network. What has succeeded is not repeated.
    fn detach(&self, record: &mut Record, index: usize, namespace: Option<&Path>) -> Result<()> {
        while let Some(attachment) = record.attachments.get(index)
            && let Some(plugin) =
                attachment.remaining.checked_sub(1).and_then(|last| attachment.network.plugins.get(last))
        {
            let network = &attachment.network;
            let previous = attachment.result.as_ref().filter(|_| network.version >= Version::V0_4_0);
            let target = Target { id: &record.id, attachment, namespace };
            match self.run(Verb::Del, network, plugin, Some(target), previous, None) {
                Ok(_) => {}
                // It has rejected ADD, too.
                Err(Failed { error, is_rejection: true })
                    if attachment.rejected.is_some_and(|first| first < attachment.remaining) =>
                {
                    warn!(
                        container = record.id,
                        "nothing was attached, and DEL is rejected like ADD: {error}"
                    );
                }
                Err(Failed { error, .. }) => {
                    return Err(
                        error.context(format!("cannot detach it from the network `{}`", network.name))
                    );
                }
            }
            if let Some(attachment) = record.attachments.get_mut(index) {
                attachment.remaining -= 1;
            }
            self.store.write(record)?;
        }
        Ok(())
    }

    /// Asks the plugins of a container's networks whether all is as they have left it.
    pub fn check(&self, record: &Record) -> Result<()> {
        let namespace = self.store.namespace_path(&record.id);
        for attachment in &record.attachments {
            let network = &attachment.network;
            if network.version < Version::V0_4_0 || network.disable_check {
                continue;
            }
            for plugin in &network.plugins {
                let target = Target { id: &record.id, attachment, namespace: Some(&namespace) };
                self.run(Verb::Check, network, plugin, Some(target), attachment.result.as_ref(), None)
                    .map_err(|failed| failed.error)
                    .context(format!("the network `{}`", network.name))?;
            }
        }
        Ok(())
    }

    /// Tells the plugins of a network which attachments exist.
    pub fn collect(&self, network: &Network, valid: &[(String, String)]) -> Result<()> {
        if network.version < Version::V1_1_0 || network.disable_gc {
            return Ok(());
        }
        let valid: Vec<Json> =
            valid.iter().map(|(id, interface)| json!({ "containerID": id, "ifname": interface })).collect();
        for plugin in &network.plugins {
            self.run(Verb::Gc, network, plugin, None, None, Some(json!(valid)))
                .map_err(|failed| failed.error)?;
        }
        Ok(())
    }

    fn run(
        &self,
        verb: Verb,
        network: &Network,
        plugin: &Map<String, Json>,
        target: Option<Target<'_>>,
        previous: Option<&Json>,
        valid: Option<Json>,
    ) -> std::result::Result<Json, Failed> {
        let doing =
            || format!("the CNI plugin `{}` ({}, {})", kind(plugin), verb.text(), network.file.display());
        let output = self
            .output(verb, kind(plugin), target, &configuration(network, plugin, previous, valid))
            .context(doing())
            .map_err(|error| Failed { error, is_rejection: false })?;
        let printed = match (output.status.success(), verb) {
            (false, _) => Err(results::failure(&output)),
            (true, Verb::Add) => results::object(&output),
            (true, _) => Ok(Json::Null),
        };
        printed.map_err(|error| Failed {
            error: error.context(doing()),
            is_rejection: results::is_rejection(&output),
        })
    }

    fn output(
        &self,
        verb: Verb,
        kind: &str,
        target: Option<Target<'_>>,
        configuration: &Json,
    ) -> Result<Output> {
        let Some(networks) = self.networks else {
            return Err(Error::new(
                "`network_cni_plugins_dir` is needed to release networks; configure it again",
            ));
        };
        let timeout = self.time_left();
        if timeout.is_zero() {
            return Err(Error::new("no time is left to run it").retryable());
        }
        let program = networks.program(kind)?;
        let input = match &target {
            Some(target) => self.store.request(target.id, configuration)?,
            None => self.store.request_of_all(configuration)?,
        };
        let mut program = Program::new(program)
            .environment("CNI_COMMAND", verb.text())
            .environment("CNI_PATH", networks.search_path())
            .environment("PATH", PATH)
            .input(input);
        let Some(Target { id, attachment, namespace }) = target else { return Ok(program.run(timeout)?) };
        program = program
            .environment("CNI_CONTAINERID", id)
            .environment("CNI_IFNAME", attachment.interface.as_str());
        if let Some(namespace) = namespace {
            program = program.environment("CNI_NETNS", namespace);
        }
        let output = program.run(timeout);
        self.store.forget_request(id)?;
        Ok(output?)
    }

    /// How long a plugin may run now.
    fn time_left(&self) -> Duration {
        let left = self.deadline.map_or(Duration::MAX, Deadline::remaining);
        left.saturating_sub(MARGIN).min(self.timeout)
    }
}

/// Restores the interfaces of a container that may have changed them. CNI plugins find out by the interface which packet
/// filters they have set up for it, and leave them, or fail forever, if they do not find what they expect.
fn restore(record: &Record, namespace: &OwnedFd) {
    for Attachment { interface, network, result, remaining, .. } in &record.attachments {
        let Some(result) = result.as_ref().filter(|_| *remaining > 0) else { continue };
        let Ok(Outcome { addresses, .. }) = results::parse(network.version, result) else { continue };
        if addresses.is_empty() {
            continue;
        }
        match network::restore_interface(namespace, interface, None, &addresses) {
            Ok(false) => {}
            Ok(true) => debug!(container = record.id, interface, "the container has changed its interface"),
            Err(error) => {
                warn!(
                    container = record.id,
                    interface, "cannot restore the interface of the container: {error}"
                );
            }
        }
    }
}

/// Why a plugin has no result.
struct Failed {
    error: Error,
    /// Whether it could not use its configuration, and so has done nothing.
    is_rejection: bool,
}

/// An interface of a container.
struct Target<'a> {
    id: &'a str,
    attachment: &'a Attachment,
    /// `None` if the namespace does not exist any more.
    namespace: Option<&'a Path>,
}

/// The standard input of a plugin.
fn configuration(
    network: &Network,
    plugin: &Map<String, Json>,
    previous: Option<&Json>,
    valid: Option<Json>,
) -> Json {
    let mut configuration = plugin.clone();
    // Of the list; a network without a list has none of these keys.
    for key in ["cniVersions", "plugins", "disableCheck", "disableGC"] {
        configuration.remove(key);
    }
    configuration.insert("name".to_owned(), json!(network.name));
    configuration.insert("cniVersion".to_owned(), json!(network.version.text()));
    if let Some(previous) = previous {
        configuration.insert("prevResult".to_owned(), previous.clone());
    }
    if let Some(valid) = valid {
        configuration.insert("cni.dev/valid-attachments".to_owned(), valid.clone());
        configuration.insert("cni.dev/attachments".to_owned(), valid);
    }
    Json::Object(configuration)
}
