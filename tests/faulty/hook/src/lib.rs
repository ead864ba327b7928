//! A hook that records its calls, and answers or misbehaves as configured.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use cofferdam_plugin_api::model::{
    DockerLaunch, DockerLaunchReply, ExecutorDetails, ExecutorEnvironment, PostFetch, TaskStatus,
    TaskStatusReply,
};
use cofferdam_plugin_api::prelude::*;

struct Recorder {
    config: Config,
    journal: File,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// File to record calls in, one JSON object a line: `hook`, `method`, `container`, `request`.
    journal: PathBuf,
    /// What calls are recorded as, if several hooks share a journal.
    #[serde(default)]
    hook: String,
    /// Variables that executors have instead of those that they request; a value `$NAME` is that of the requested one.
    environment: Option<BTreeMap<String, String>>,
    /// Variables for executors of containers of an engine.
    #[serde(default)]
    executor_environment: BTreeMap<String, String>,
    /// Variables for tasks of containers of an engine.
    #[serde(default)]
    task_environment: BTreeMap<String, String>,
    /// Labels to add to those of status updates.
    labels: Option<BTreeMap<String, String>>,
    /// Container status of updates, as JSON.
    container_status: Option<String>,
    /// What goes wrong.
    #[serde(default)]
    faults: Vec<Fault>,
}

/// A fault in one method.
#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Fault {
    /// The method.
    method: String,
    /// Kind of fault.
    act: Act,
    /// A named pipe: `hang` lasts until end of file.
    until: Option<PathBuf>,
}

/// Kind of fault.
#[derive(Clone, Copy, Deserialize, PluginConfig)]
#[serde(rename_all = "snake_case")]
enum Act {
    /// Returns an error.
    Error,
    /// Panics.
    Panic,
    /// Blocks until the pipe is closed.
    Hang,
}

impl Recorder {
    /// Records a call, and applies the fault of its method.
    fn handle(&self, method: &str, container: &str, request: Json) -> Result<()> {
        let call = json!({
            "hook": self.config.hook, "method": method, "container": container, "request": request,
        });
        // One write, so that lines of concurrent calls are not mixed.
        (&self.journal).write_all(format!("{call}\n").as_bytes())?;
        let Some(fault) = self.config.faults.iter().find(|fault| fault.method == method) else {
            return Ok(());
        };
        match fault.act {
            Act::Error => Err(Error::new("deliberate error")),
            Act::Panic => panic!("deliberate panic"),
            Act::Hang => {
                let Some(pipe) = &fault.until else { return Err(Error::new("`hang` needs `until`")) };
                File::open(pipe)?.read_to_end(&mut Vec::new())?;
                Ok(())
            }
        }
    }

    fn record<T: Serialize>(&self, method: &str, call: &HookCall<'_, T>) -> Result<()> {
        self.handle(method, call.container(), serde_json::to_value(&**call)?)
    }
}

#[cofferdam_plugin_api::hook]
impl Hook for Recorder {
    const NAME: &'static str = "test/hook";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let journal = OpenOptions::new().append(true).create(true).open(&config.journal)?;
        Ok(Self { config, journal })
    }

    fn executor_environment(
        &self,
        call: &HookCall<'_, ExecutorEnvironment>,
    ) -> Result<Option<BTreeMap<String, String>>> {
        self.record("executor_environment", call)?;
        let value = |value: &String| match value.strip_prefix('$') {
            Some(name) => call.environment.get(name).cloned().unwrap_or_default(),
            None => value.clone(),
        };
        let environment = self.config.environment.as_ref();
        Ok(environment.map(|all| all.iter().map(|(name, text)| (name.clone(), value(text))).collect()))
    }

    fn pre_launch_docker(&self, call: &HookCall<'_, DockerLaunch>) -> Result<DockerLaunchReply> {
        self.record("pre_launch_docker", call)?;
        Ok(DockerLaunchReply {
            executor_environment: self.config.executor_environment.clone(),
            task_environment: self.config.task_environment.clone(),
        })
    }

    fn post_fetch(&self, call: &HookCall<'_, PostFetch>) -> Result<()> {
        let sandbox = format!("/proc/self/fd/{}", call.sandbox()?.as_raw_fd());
        let names = fs::read_dir(sandbox)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<std::io::Result<Vec<String>>>()?;
        names.sort();
        let mut request = serde_json::to_value(&**call)?;
        request["files"] = json!(names);
        self.handle("post_fetch", call.container(), request)
    }

    fn task_status(&self, call: &HookCall<'_, TaskStatus>) -> Result<TaskStatusReply> {
        self.record("task_status", call)?;
        let labels = self.config.labels.as_ref().map(|more| {
            let mut labels = call.labels.clone();
            labels.extend(more.clone());
            labels
        });
        let container_status =
            self.config.container_status.as_deref().map(serde_json::from_str).transpose()?;
        Ok(TaskStatusReply { labels, container_status })
    }

    fn remove_executor(&self, call: &HookCall<'_, ExecutorDetails>) -> Result<()> {
        self.record("remove_executor", call)
    }
}
