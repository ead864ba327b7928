//! Runs CNI plugins: ADD in the order of a network's list, DEL in reverse order, CHECK, GC, STATUS.
//!
//! An attachment is recorded before the first plugin is run, and forgotten when DEL has succeeded for each of its plugins.
//! Both survive the agent, so every ADD is followed by one DEL per plugin, whatever happens in between.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_plugin_api::command::{CommandError, Output, Program};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{Deadline, network};
use serde_json::Map;

use crate::networks::{Network, Networks, Version, kind};
use crate::results::{self, Outcome, Report};
use crate::store::{Attachment, Failure, Record, Store};

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
    Status,
}

impl Verb {
    const fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// Attaches and detaches containers, within the time of one call.
pub struct Attacher<'a> {
    /// `None` if no networks are configured.
    pub networks: Option<&'a Networks>,
    pub store: &'a Store,
    pub failures: &'a Failures,
    /// For one run of a plugin.
    pub timeout: Duration,
    /// When the caller wants to go on, which then repeats it later.
    pub end: Option<Instant>,
    /// Of the call; `None` outside of calls.
    pub deadline: Option<Deadline>,
}

/// Which containers DEL has failed for, since the agent was started.
#[derive(Debug, Default)]
pub struct Failures(Mutex<BTreeMap<String, Failed>>);

#[derive(Debug, Clone, Copy, Default)]
struct Failed {
    calls: usize,
    /// Whether the container has changed its interfaces.
    is_changed: bool,
}

/// After how many calls in which DEL has failed it is called without a namespace.
const CALLS_WITH_NAMESPACE: usize = 2;

/// The namespace with which DEL is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Own,
    /// Another one in its place, which no container has changed.
    Substitute,
    None,
}

impl Attacher<'_> {
    /// Attaches a container to a network.
    pub fn add(&self, record: &mut Record, attachment: Attachment) -> Result<Outcome> {
        let network = attachment.network.clone();
        record.attachments.push(attachment);
        self.record(record)?;
        let attached = self.run_add(record, &network);
        let (result, outcome) =
            attached.context(format!("cannot attach it to the network `{}`", network.name))?;
        let original = self.original(record)?;
        if let Some(attachment) = record.attachments.last_mut() {
            attachment.result = Some(result);
            attachment.original = original;
        }
        self.record(record)?;
        Ok(outcome)
    }

    /// Writes a record, and reserves what is needed to detach the container.
    fn record(&self, record: &Record) -> Result<()> {
        self.store.write(record)?;
        let mut longest = 0;
        for attachment in &record.attachments {
            let network = &attachment.network;
            for plugin in &network.plugins {
                let request = configuration(network, plugin, previous_of_del(attachment), None);
                longest = longest.max(serde_json::to_vec(&request)?.len());
            }
        }
        self.store.reserve(&record.id, longest)
    }

    /// The interface of the last attachment.
    fn original(&self, record: &Record) -> Result<Option<network::Interface>> {
        let (Some(attachment), Some(namespace)) =
            (record.attachments.last(), self.store.namespace(&record.id)?)
        else {
            return Ok(None);
        };
        let interface = &attachment.interface;
        network::interface(&namespace, interface).context(format!("cannot find the interface `{interface}`"))
    }

    fn run_add(&self, record: &mut Record, network: &Network) -> Result<(Json, Outcome)> {
        let namespace = self.store.namespace_path(&record.id);
        let mut result = Json::Null;
        for (index, plugin) in network.plugins.iter().enumerate() {
            let attachment = record.attachments.last().ok_or_else(|| Error::new("there is no attachment"))?;
            let previous = Some(&result).filter(|result| !result.is_null());
            let target = Target { id: &record.id, attachment, namespace: Some(&namespace) };
            match self.run(Verb::Add, network, plugin, Some(target), previous, None, 1) {
                Ok(printed) => result = printed,
                Err(Refused { error, rejection, .. }) => {
                    if let Some(attachment) = record.attachments.last_mut() {
                        attachment.failure = Some(Failure { plugin: index, rejection });
                    }
                    if let Err(error) = self.store.write(record) {
                        warn!(container = record.id, "cannot record that ADD has failed: {error}");
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
        self.store.wait_for_request(id, self.timeout, self.time_left(1))?;
        if let Some(mut record) = self.store.read(id)?
            && let Err(error) = self.run_del(&mut record)
        {
            lock(&self.failures.0).entry(id.to_owned()).or_default().calls += 1;
            return Err(error);
        }
        lock(&self.failures.0).remove(id);
        self.store.remove(id)
    }

    fn run_del(&self, record: &mut Record) -> Result<()> {
        let namespace = self.store.uncovered_namespace(record)?;
        let mut errors = Vec::new();
        for index in (0..record.attachments.len()).rev() {
            if let Err(error) = self.detach(record, index, namespace.as_ref()) {
                errors.push(error.causes().join(": "));
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        let mut message = errors.join("; ");
        if self.failed_calls(&record.id) >= CALLS_WITH_NAMESPACE {
            message += &format!(
                "; if this cannot be repaired, release what the CNI plugins keep for it with their own tools, and remove `{}`",
                self.store.record_path(&record.id).display()
            );
        }
        Err(Error::new(message).retryable())
    }

    fn failed_calls(&self, id: &str) -> usize {
        lock(&self.failures.0).get(id).map_or(0, |failed| failed.calls)
    }

    /// Detaches a container from one network: with its own namespace, then with one that it cannot have changed, and at last
    /// without one. What a container has done to its namespace must not keep it from being removed.
    fn detach(&self, record: &mut Record, index: usize, namespace: Option<&OwnedFd>) -> Result<()> {
        let is_gone = self.is_gone(record, index, namespace);
        let mut places = self.places(record, index, namespace);
        if self.end.is_some() {
            places.truncate(1);
        }
        let persists = self.failed_calls(&record.id) >= CALLS_WITH_NAMESPACE;
        let mut outcome = Ok(());
        for (attempt, place) in places.iter().enumerate() {
            // Of the time that is left, this attempt must leave some for those that follow, and for the other networks.
            let shares = places.len() - attempt + index;
            outcome = match self.cover(record, index, *place) {
                Ok(_cover) => self.detach_at(record, index, *place, shares),
                Err(error) => Err((error, true)),
            };
            match &outcome {
                Ok(()) => {
                    if is_gone || *place != Place::Own {
                        self.delete_original(record, index, namespace);
                    }
                    break;
                }
                Err((_, false)) if !persists => break,
                Err((error, _)) => {
                    debug!(container = record.id, ?place, "DEL has failed: {}", error.causes().join(": "))
                }
            }
        }
        outcome.map_err(|(error, _)| error)
    }

    /// Whether the container has deleted its interface, or moved it to another namespace.
    fn is_gone(&self, record: &Record, index: usize, namespace: Option<&OwnedFd>) -> bool {
        let original = record.attachments.get(index).and_then(|attachment| attachment.original.as_ref());
        original.zip(namespace).is_some_and(|(original, namespace)| {
            network::is_gone(namespace, original).unwrap_or_else(|error| {
                warn!(container = record.id, "cannot find its interface: {error}");
                true
            })
        })
    }

    /// Deletes an interface that the plugins have not found. Its other end on the host must not outlive the container.
    fn delete_original(&self, record: &Record, index: usize, namespace: Option<&OwnedFd>) {
        let original = record.attachments.get(index).and_then(|attachment| attachment.original.as_ref());
        if let Some((original, namespace)) = original.zip(namespace)
            && let Err(error) = network::delete_interface(namespace, original)
        {
            debug!(
                container = record.id,
                "cannot delete its interface, which ends with its namespace: {error}"
            );
        }
    }

    /// The namespaces with which DEL is tried.
    fn places(&self, record: &Record, index: usize, namespace: Option<&OwnedFd>) -> Vec<Place> {
        let Some((attachment, namespace)) = record.attachments.get(index).zip(namespace) else {
            return vec![Place::None];
        };
        if attachment.remaining == 0 {
            return vec![Place::Own];
        }
        let Some(Outcome { addresses, .. }) = outcome_of(attachment) else {
            // The container was not started.
            return vec![Place::Own];
        };
        let Attachment { interface, original, .. } = attachment;
        let restored = match (original, addresses.as_slice()) {
            // As the plugins have left it.
            (None, []) => Ok(false),
            _ => network::restore_interface(namespace, interface, original.as_ref(), &addresses),
        };
        let mut places = vec![Place::Substitute];
        let is_changed = match restored {
            Ok(is_changed) => {
                places.insert(0, Place::Own);
                is_changed
            }
            Err(error) => {
                warn!(container = record.id, interface, "cannot restore the interface: {error}");
                true
            }
        };
        let mut failures = lock(&self.failures.0);
        let known = failures.get(&record.id).copied().unwrap_or_default();
        if is_changed {
            debug!(container = record.id, interface, "the container has changed its interface");
            failures.entry(record.id.clone()).or_default().is_changed = true;
        }
        // Interfaces may be gone that no other can replace.
        if (is_changed || known.is_changed) && known.calls >= CALLS_WITH_NAMESPACE {
            places.push(Place::None);
        }
        places
    }

    /// Mounts a substitute for the namespace of a container, until the result is dropped.
    fn cover(&self, record: &Record, index: usize, place: Place) -> Result<Option<Cover>> {
        let Some(attachment) = record.attachments.get(index).filter(|_| place == Place::Substitute) else {
            return Ok(None);
        };
        let path = self.store.namespace_path(&record.id);
        let addresses = outcome_of(attachment).map(|outcome| outcome.addresses).unwrap_or_default();
        network::cover(&path, &attachment.interface, &addresses)
            .context(format!("cannot mount another network namespace at `{}`", path.display()))?;
        Ok(Some(Cover(path)))
    }

    /// What has succeeded is not repeated. An error tells whether it may be another one at another place.
    fn detach_at(
        &self,
        record: &mut Record,
        index: usize,
        place: Place,
        shares: usize,
    ) -> std::result::Result<(), (Error, bool)> {
        let path = self.store.namespace_path(&record.id);
        while let Some(attachment) = record.attachments.get(index)
            && let Some(position) = attachment.remaining.checked_sub(1)
            && let Some(plugin) = attachment.network.plugins.get(position)
        {
            let network = &attachment.network;
            let namespace = Some(path.as_path()).filter(|_| place != Place::None);
            let target = Target { id: &record.id, attachment, namespace };
            match self.run(
                Verb::Del,
                network,
                plugin,
                Some(target),
                previous_of_del(attachment),
                None,
                shares,
            ) {
                Ok(_) => {}
                Err(Refused { error, rejection: Some(rejection), .. })
                    if attachment
                        .failure
                        .as_ref()
                        .is_some_and(|failure| failure.explains(position, &rejection)) =>
                {
                    warn!(
                        container = record.id,
                        "nothing was attached, and DEL is rejected like ADD: {}",
                        error.causes().join(": ")
                    );
                }
                Err(Refused { error, depends_on_place, .. }) => {
                    let hint = format!("cannot detach it from the network `{}`", network.name);
                    return Err((error.context(hint), depends_on_place));
                }
            }
            if let Some(attachment) = record.attachments.get_mut(index) {
                attachment.remaining -= 1;
            }
            if let Err(error) = self.store.write(record) {
                // DEL may be repeated then, which is better than a container that does not end.
                warn!(
                    container = record.id,
                    "cannot record that DEL has succeeded: {}",
                    error.causes().join(": ")
                );
            }
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
                self.run(Verb::Check, network, plugin, Some(target), attachment.result.as_ref(), None, 1)
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
        let mut errors = Vec::new();
        // Each has its own.
        for plugin in &network.plugins {
            if let Err(Refused { error, .. }) =
                self.run(Verb::Gc, network, plugin, None, None, Some(json!(valid)), 1)
            {
                errors.push(error.causes().join(": "));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::new(errors.join("; "))) }
    }

    /// Asks the plugins of a network whether containers can be attached.
    pub fn status(&self, network: &Network) -> Result<()> {
        if network.version < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &network.plugins {
            self.run(Verb::Status, network, plugin, None, None, None, 1).map_err(|refused| refused.error)?;
        }
        Ok(())
    }

    /// Runs a plugin for at most one of several equal shares of the time that is left.
    #[expect(clippy::too_many_arguments, reason = "they are what a plugin is told")]
    fn run(
        &self,
        verb: Verb,
        network: &Network,
        plugin: &Map<String, Json>,
        target: Option<Target<'_>>,
        previous: Option<&Json>,
        valid: Option<Json>,
        shares: usize,
    ) -> std::result::Result<Json, Refused> {
        let doing =
            || format!("the CNI plugin `{}` ({}, {})", kind(plugin), verb.text(), network.file.display());
        let input = configuration(network, plugin, previous, valid);
        let output = self.output(verb, kind(plugin), target, &input, self.time_left(shares)).map_err(
            |(error, depends_on_place)| Refused {
                error: error.context(doing()),
                rejection: None,
                depends_on_place,
            },
        )?;
        let printed = match (output.status.success(), verb) {
            (false, _) => Err(results::failure(&output)),
            (true, Verb::Add) => results::object(&output),
            (true, _) => Ok(Json::Null),
        };
        printed.map_err(|error| Refused {
            depends_on_place: !error.is_retryable(),
            error: error.context(doing()),
            rejection: results::rejection(&output).filter(|_| !output.status.success()),
        })
    }

    /// An error tells whether it may be another one at another place.
    fn output(
        &self,
        verb: Verb,
        kind: &str,
        target: Option<Target<'_>>,
        configuration: &Json,
        timeout: Duration,
    ) -> std::result::Result<Output, (Error, bool)> {
        let failed = |error: Error| (error, false);
        let Some(networks) = self.networks else {
            return Err(failed(Error::new(
                "`network_cni_plugins_dir` is needed to release networks; configure it again",
            )));
        };
        if timeout.is_zero() {
            return Err(failed(Error::new("no time is left to run it").retryable()));
        }
        let program = networks.program(kind).map_err(failed)?;
        let input = match &target {
            Some(target) => self.store.request(target.id, configuration),
            None => self.store.request_of_all(configuration),
        };
        let mut program = Program::new(program)
            .environment("CNI_COMMAND", verb.text())
            .environment("CNI_PATH", networks.search_path())
            .environment("PATH", PATH)
            .input(input.map_err(failed)?);
        let id = target.as_ref().map(|target| target.id);
        if let Some(Target { id, attachment, namespace }) = target {
            program = program
                .environment("CNI_CONTAINERID", id)
                .environment("CNI_IFNAME", attachment.interface.as_str());
            if let Some(namespace) = namespace {
                program = program.environment("CNI_NETNS", namespace);
            }
        }
        let output = program.run(timeout);
        // A process that it has started may be in another process group.
        let ended = match (id, &output) {
            (Some(id), Ok(_) | Err(CommandError::Start { .. })) => self.store.forget_request(id),
            (Some(id), Err(_)) => self.store.end_request(id),
            (None, Ok(_) | Err(CommandError::Start { .. })) => self.store.forget_request_of_all(),
            (None, Err(_)) => self.store.end_request_of_all(),
        };
        let is_started = !matches!(output, Err(CommandError::Start { .. }));
        match (output, ended) {
            (Ok(output), Ok(())) => Ok(output),
            (Ok(_), Err(error)) => Err(failed(error)),
            (Err(error), Ok(())) => Err((error.into(), is_started)),
            // It would run beside the next one.
            (Err(_), Err(error)) => Err(failed(error)),
        }
    }

    /// The time of the call that is left.
    pub fn remaining(&self) -> Duration {
        let left = self.deadline.map_or(Duration::MAX, Deadline::remaining).saturating_sub(MARGIN);
        self.end.map_or(left, |end| left.min(end.saturating_duration_since(Instant::now())))
    }

    /// How long a plugin may run now, if that is one of several that may take as long.
    fn time_left(&self, shares: usize) -> Duration {
        let share = self
            .remaining()
            .checked_div(u32::try_from(shares.max(1)).unwrap_or(u32::MAX))
            .unwrap_or_default();
        share.min(self.timeout)
    }
}

impl Failure {
    /// Whether a plugin that rejects DEL has attached nothing: it was not called, or rejects DEL exactly as it has rejected ADD. With
    /// the same words, it is also the same plugin that it runs itself, for instance for addresses, that does.
    fn explains(&self, position: usize, rejection: &Report) -> bool {
        position > self.plugin || (position == self.plugin && self.rejection.as_ref() == Some(rejection))
    }
}

/// What a plugin gets as the result of ADD when DEL is called.
fn previous_of_del(attachment: &Attachment) -> Option<&Json> {
    attachment.result.as_ref().filter(|_| attachment.network.version >= Version::V0_4_0)
}

/// What a container has got; `None` if ADD has not succeeded.
fn outcome_of(attachment: &Attachment) -> Option<Outcome> {
    results::parse(attachment.network.version, attachment.result.as_ref()?).ok()
}

/// A substitute that is mounted.
struct Cover(PathBuf);

impl Drop for Cover {
    fn drop(&mut self) {
        if let Err(error) = network::uncover(&self.0) {
            warn!("cannot unmount `{}`: {error}", self.0.display());
        }
    }
}

/// Why a plugin has no result.
struct Refused {
    error: Error,
    /// What it has reported, if it could not use its configuration.
    rejection: Option<Report>,
    /// Whether it may be another one with another namespace.
    depends_on_place: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves nothing half done in what this protects.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
