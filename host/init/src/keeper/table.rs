//! The slots of the keeper: which processes belong to which container.

use super::index::Index;
use crate::protocol::{ENTRY_LENGTH, Entry, MAX_SLOTS, Slot, State};
use crate::sys::{self, Errno, Fd, Mapping, Pid};

/// The processes of a container that are, or will be, children of the keeper.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Container {
    pub(super) state: State,
    pub(super) generation: u32,
    /// Sets the container up; 0 if it has ended, as for the others.
    pub(super) setup: i32,
    /// The command, or its parent if that stays.
    pub(super) command: i32,
    /// Process 1 of its pid namespace, if that is not the command.
    pub(super) reaper: i32,
    /// The wait status, when the command has ended.
    pub(super) status: i32,
    /// The agent has recorded the status.
    pub(super) forgotten: bool,
}

impl Container {
    /// Whether one of its processes has not been reaped.
    pub(super) const fn has_processes(&self) -> bool {
        self.setup != 0 || self.command != 0 || self.reaper != 0
    }

    const fn processes(&self) -> [i32; PROCESSES] {
        [self.setup, self.command, self.reaper]
    }
}

/// Maximum number of processes of a slot.
const PROCESSES: usize = 3;

/// Words of memory for each slot.
const WORDS: usize = 4;

/// All slots, and the file that tells of them. Children of the keeper find zeros in the memory.
pub(super) struct Table {
    memory: Mapping,
    /// Finds processes: `PROCESSES` numbers for each slot.
    index: Index,
    file: Fd,
    /// Number of slots that were ever used.
    used: usize,
    /// Number of slots for which the file has space.
    reserved: usize,
    /// The most recently freed slot, plus 1. Each free slot has the next one in the place of its status.
    free: usize,
    /// Number of slots with processes.
    live: usize,
}

impl Table {
    /// By how many slots the file grows: a page.
    const STEP: usize = 4096 / ENTRY_LENGTH;

    pub(super) fn new(file: Fd) -> Result<Self, Errno> {
        let memory = Mapping::kept_from_children(MAX_SLOTS * WORDS * size_of::<usize>())?;
        let index = Index::new(MAX_SLOTS * PROCESSES)?;
        Ok(Self { memory, index, file, used: 0, reserved: 0, free: 0, live: 0 })
    }

    /// Number of containers that have a process.
    pub(super) const fn live(&self) -> usize {
        self.live
    }

    /// Takes a free slot, of which the end can be recorded whatever happens to the disk.
    pub(super) fn take(&mut self) -> Result<Slot, Errno> {
        let index = match self.free {
            0 if self.used == MAX_SLOTS => return Err(Errno::NOSPC),
            0 => self.used,
            free => free - 1,
        };
        if index >= self.reserved {
            let start = Entry::offset(self.reserved as u32);
            sys::reserve(self.file, start, (Self::STEP * ENTRY_LENGTH) as u64)?;
            self.reserved += Self::STEP;
        }
        let before = self.get(index);
        if index == self.used {
            self.used += 1;
        } else {
            self.free = before.status.cast_unsigned() as usize;
        }
        let generation = before.generation.wrapping_add(1);
        self.put(index, Container { generation, ..Container::default() });
        Ok(Slot { index: index as u32, generation })
    }

    /// Gives back a slot that was taken and never used.
    pub(super) fn give_back(&mut self, slot: Slot) {
        self.free(slot.index as usize);
    }

    /// The container in a slot, if this use of it has not ended.
    pub(super) fn container(&self, slot: Slot) -> Option<Container> {
        let index = slot.index as usize;
        let container = (index < self.used).then(|| self.get(index))?;
        (container.generation == slot.generation && container.state != State::Free).then_some(container)
    }

    /// The container of a process, with its slot.
    pub(super) fn of_process(&self, pid: Pid) -> Option<(Slot, Container)> {
        let pid = pid.number();
        self.index.chain(pid).find_map(|number| {
            let index = number / PROCESSES;
            let container = self.get(index);
            let slot = Slot { index: index as u32, generation: container.generation };
            let is_its = container.processes().get(number % PROCESSES) == Some(&pid);
            (is_its && container.state != State::Free).then_some((slot, container))
        })
    }

    /// Calls `act` for every container.
    pub(super) fn for_each(&self, mut act: impl FnMut(Container)) {
        (0..self.used).map(|index| self.get(index)).filter(|it| it.state != State::Free).for_each(&mut act);
    }

    /// Replaces what is known of a container, in the file first. Frees the slot if nothing needs it any more.
    pub(super) fn update(&mut self, slot: Slot, container: Container) {
        let index = slot.index as usize;
        let before = self.get(index);
        if container.forgotten {
            // Nothing is on record from then on, even if its processes have not been reaped yet.
            if !before.forgotten {
                self.write(index, &Container { generation: slot.generation, ..Container::default() });
            }
        } else if before.state != container.state {
            self.write(index, &container);
        }
        match (before.has_processes(), container.has_processes()) {
            (false, true) => self.live += 1,
            (true, false) => self.live -= 1,
            _ => {}
        }
        self.put(index, container);
        if container.forgotten && !container.has_processes() {
            self.free(index);
        }
    }

    fn free(&mut self, index: usize) {
        let generation = self.get(index).generation;
        let status = self.free as i32;
        let freed = Container { generation, status, ..Container::default() };
        self.write(index, &freed);
        self.put(index, freed);
        self.free = index + 1;
    }

    /// Writes the entry of a slot. Its space is reserved; if this fails all the same, a connected agent learns the status
    /// from memory.
    fn write(&self, index: usize, container: &Container) {
        let Container { generation, status, state, setup, command, .. } = *container;
        let pid = if command == 0 { setup } else { command };
        let entry = Entry { generation, pid, status, state };
        let write = || sys::write_at(self.file, &entry.encode(), Entry::offset(index as u32));
        if write().is_err() {
            // Nobody else would try again.
            let _ = write();
        }
    }

    fn get(&self, index: usize) -> Container {
        let words: [usize; WORDS] = core::array::from_fn(|word| self.memory.word(index * WORDS + word));
        let [head, processes, other, status] = words.map(|word| word as u64);
        Container {
            state: match head as u32 & 7 {
                1 => State::Starting,
                2 => State::Running,
                3 => State::Ended,
                4 => State::NotStarted,
                5 => State::Exited,
                _ => State::Free,
            },
            forgotten: head & 8 != 0,
            generation: (head >> 32) as u32,
            setup: processes as i32,
            command: (processes >> 32) as i32,
            reaper: other as i32,
            status: status as i32,
        }
    }

    fn put(&mut self, index: usize, container: Container) {
        let processes = self.get(index).processes().into_iter().zip(container.processes());
        for (number, (before, after)) in (index * PROCESSES..).zip(processes) {
            if before == after {
                continue;
            }
            if before != 0 {
                self.index.remove(before, number);
            }
            if after != 0 {
                self.index.insert(after, number);
            }
        }
        let Container { state, generation, setup, command, reaper, status, forgotten } = container;
        let low = |number: i32| u64::from(number.cast_unsigned());
        let words = [
            state as u64 | u64::from(forgotten) << 3 | u64::from(generation) << 32,
            low(setup) | low(command) << 32,
            low(reaper),
            low(status),
        ];
        let slots = self.memory.words().chunks_exact_mut(WORDS);
        if let Some(slot) = slots.into_iter().nth(index) {
            slot.iter_mut().zip(words).for_each(|(to, word)| *to = word as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::{Container, Table};
    use crate::protocol::State;
    use crate::sys::{Fd, Pid};

    #[test]
    fn a_process_is_found_in_its_slot_until_it_has_ended() {
        let file = tempfile::tempfile().unwrap();
        let mut table = Table::new(Fd(file.as_raw_fd())).unwrap();
        let slots: Vec<_> = (0..20_000)
            .map(|number| {
                let slot = table.take().unwrap();
                let pid = 100 + 2 * number;
                let (generation, state) = (slot.generation, State::Running);
                let container =
                    Container { state, generation, command: pid, reaper: pid + 1, ..Container::default() };
                table.update(slot, container);
                (slot, pid)
            })
            .collect();
        assert_eq!(table.live(), slots.len());
        for (slot, pid) in &slots {
            for pid in [*pid, pid + 1] {
                assert_eq!(table.of_process(Pid::new(pid)).map(|(found, _)| found), Some(*slot), "{pid}");
            }
            let container = table.container(*slot).unwrap();
            table.update(*slot, Container { state: State::Exited, command: 0, ..container });
            assert!(table.of_process(Pid::new(*pid)).is_none());
            assert!(table.of_process(Pid::new(pid + 1)).is_some());
            let container = table.container(*slot).unwrap();
            table.update(*slot, Container { reaper: 0, forgotten: true, ..container });
            assert!(table.of_process(Pid::new(pid + 1)).is_none());
        }
        assert_eq!(table.live(), 0);
        let next = table.take().unwrap();
        assert_eq!((next.index, next.generation), (slots.last().unwrap().0.index, 2), "a slot is used again");
        assert!(table.of_process(Pid::new(0)).is_none());
    }
}
