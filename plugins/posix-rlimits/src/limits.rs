//! Checks of resource limits before a launch.

use std::collections::BTreeMap;
use std::fs;

use cofferdam_plugin_api::model::{AgentProcess, Rlimit};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{capability, resource_limit};

/// What limits can be set to on this host.
pub struct Bounds {
    /// The hard limits of the agent, if it cannot exceed them. Those that are unlimited are missing.
    own: BTreeMap<String, u64>,
    /// The kernel's limit for `NOFILE`.
    max_files: u64,
}

impl Bounds {
    pub fn of(agent: &AgentProcess) -> Result<Self> {
        let may_raise = capability::number("SYS_RESOURCE")
            .is_some_and(|number| capability::contains(agent.permitted_capabilities, number));
        let own = if may_raise { BTreeMap::new() } else { agent.hard_limits.clone() };
        let max_files = fs::read_to_string("/proc/sys/fs/nr_open").context("cannot read `fs.nr_open`")?;
        let max_files = max_files.trim().parse().context("`fs.nr_open` is not a number")?;
        Ok(Self { own, max_files })
    }

    /// Checks a limit.
    pub fn check(&self, name: &str, limit: &Rlimit) -> Result<()> {
        if !resource_limit::names().any(|known| known == name) {
            let known: Vec<&str> = resource_limit::names().collect();
            return Err(Error::invalid(format!(
                "there is no resource limit `{name}`; expected one of {}",
                known.join(", ")
            )));
        }
        if limit.soft.is_some() != limit.hard.is_some() {
            return Err(Error::invalid(
                "one of `soft` and `hard` is missing; set both, or none for no limit",
            ));
        }
        if let (Some(soft), Some(hard)) = (limit.soft, limit.hard)
            && soft > hard
        {
            return Err(Error::invalid(format!("`soft` is {soft}, above `hard`, which is {hard}")));
        }
        let hard = limit.hard.unwrap_or(u64::MAX);
        if name == "NOFILE" && hard > self.max_files {
            return Err(Error::invalid(format!(
                "`hard` is {}; the kernel allows {} (`fs.nr_open`)",
                show(hard),
                self.max_files
            )));
        }
        match self.own.get(name).filter(|own| hard > **own) {
            Some(own) => Err(Error::invalid(format!(
                "`hard` is {}, but the agent has neither the capability SYS_RESOURCE nor a hard limit above {own} itself; \
                 request at most that, or start the agent with a higher one",
                show(hard)
            ))),
            None => Ok(()),
        }
    }
}

fn show(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(soft: impl Into<Option<u64>>, hard: impl Into<Option<u64>>) -> Rlimit {
        Rlimit { soft: soft.into(), hard: hard.into() }
    }

    #[test]
    fn what_the_agent_cannot_exceed_is_refused_with_its_value() {
        let own = [("NOFILE".to_owned(), 20_000), ("MEMLOCK".to_owned(), 8_388_608)].into();
        let bounds = Bounds { own, max_files: 1 << 20 };
        for (name, value, expected) in [
            ("NOFILE", limit(10, 20_000), ""),
            ("NOFILE", limit(10, 20_001), "a hard limit above 20000 itself"),
            ("NOFILE", limit(None, None), "`hard` is unlimited; the kernel allows 1048576"),
            ("MEMLOCK", limit(0, 8_388_608), ""),
            ("MEMLOCK", limit(None, None), "`hard` is unlimited, but the agent has neither"),
            ("FSIZE", limit(None, None), ""),
            ("FSIZE", limit(1, 0), "`soft` is 1, above `hard`, which is 0"),
            ("FSIZE", limit(1, None), "one of `soft` and `hard` is missing"),
            ("FSIZE", limit(None, 1), "one of `soft` and `hard` is missing"),
            ("FILES", limit(1, 1), "no resource limit `FILES`; expected one of AS, CORE, CPU"),
        ] {
            let message = bounds.check(name, &value).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(
                message.contains(expected) && message.is_empty() == expected.is_empty(),
                "{name}: {message}"
            );
        }
    }

    #[test]
    fn an_agent_that_may_raise_limits_is_bounded_by_the_kernel_only() {
        let number = capability::number("SYS_RESOURCE").unwrap();
        let hard_limits = BTreeMap::from([("NOFILE".to_owned(), 1024), ("MEMLOCK".to_owned(), 0)]);
        let agent =
            |permitted_capabilities| AgentProcess { permitted_capabilities, ..AgentProcess::default() };
        let bounded = Bounds::of(&AgentProcess { hard_limits: hard_limits.clone(), ..agent(0) }).unwrap();
        assert!(bounded.check("NOFILE", &limit(1, 1025)).is_err());
        let bounds = Bounds::of(&AgentProcess { hard_limits, ..agent(1 << number) }).unwrap();
        let bounds = Bounds { max_files: 1 << 20, ..bounds };
        assert!(bounds.check("MEMLOCK", &limit(None, None)).is_ok());
        assert!(bounds.check("NOFILE", &limit(1, 1 << 20)).is_ok());
        assert!(bounds.check("NOFILE", &limit(1, (1 << 20) + 1)).is_err());
    }
}
