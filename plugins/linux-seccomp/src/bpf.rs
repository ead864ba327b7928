//! Compiles rules to a BPF program.
//!
//! ```text
//! architecture ── x86-64 ──▶ number ≥ x32? ──▶ ENOSYS
//!              │                     └──▶ binary search of the number ──▶ conditions of its rules ──▶ action
//!              ├─ i386, if the profile has it ──▶ the same
//!              └─ any other ──▶ the process is killed
//! ```

use std::collections::BTreeMap;

use cofferdam_plugin_api::model::BpfInstruction;

use crate::numbers::Architecture;

/// Length limit of the kernel.
pub const MAX_LENGTH: usize = 4096;

/// Numbers from this one on are those of x32.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Codes of instructions.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_ABOVE: u16 = 0x25;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// What a filter returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Action(pub u32);

impl Action {
    pub const KILL_PROCESS: Self = Self(0x8000_0000);
    pub const KILL_THREAD: Self = Self(0);
    pub const LOG: Self = Self(0x7ffc_0000);
    pub const ALLOW: Self = Self(0x7fff_0000);
    pub const TRAP: Self = Self(0x0003_0000);
    const ENOSYS: Self = Self::errno(38);

    pub const fn errno(number: u16) -> Self {
        Self(0x0005_0000 | number as u32)
    }

    pub const fn trace(message: u16) -> Self {
        Self(0x7ff0_0000 | message as u32)
    }

    pub const fn is_errno(self) -> bool {
        self.0 & 0xffff_0000 == 0x0005_0000
    }
}

/// How an argument is compared. All comparisons are of 64 bits without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// With these bits only.
    Masked(u64),
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub comparison: Comparison,
    pub value: u64,
}

/// What happens to a system call: the action of the first rule of which all conditions hold, or else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub rules: Vec<(Vec<Condition>, Action)>,
    pub otherwise: Action,
}

/// Decisions by number, of each architecture of a filter.
pub type Table = BTreeMap<Architecture, BTreeMap<u32, Decision>>;

/// Compiles a filter. A system call without a decision gets `default`; one that was not known when this was written gets
/// ENOSYS if `default` is an error, so that programs do without it.
pub fn compile(table: &Table, default: Action) -> Vec<BpfInstruction> {
    let mut program = vec![BpfInstruction(LOAD, 0, 0, ARCHITECTURE)];
    for (&architecture, decisions) in table {
        let mut branch = vec![BpfInstruction(LOAD, 0, 0, NUMBER)];
        branch.extend(search(&leaves(architecture, decisions, default)));
        // Not this architecture: continue behind its branch.
        let length = u32::try_from(branch.len()).unwrap_or(u32::MAX);
        program.push(BpfInstruction(JUMP_IF_EQUAL, 1, 0, architecture.audit()));
        program.push(BpfInstruction(JUMP, 0, 0, length));
        program.extend(branch);
    }
    program.push(ret(Action::KILL_PROCESS));
    program
}

fn ret(action: Action) -> BpfInstruction {
    BpfInstruction(RETURN, 0, 0, action.0)
}

/// Code for ranges of numbers: each from its first number up to that of the next.
fn leaves(
    architecture: Architecture,
    decisions: &BTreeMap<u32, Decision>,
    default: Action,
) -> Vec<(u32, Vec<BpfInstruction>)> {
    let default_code = vec![ret(default)];
    let mut leaves = vec![(0, default_code.clone())];
    let mut add = |from: u32, code: Vec<BpfInstruction>| match leaves.last_mut() {
        Some((first, last)) if *first == from => *last = code,
        _ => leaves.push((from, code)),
    };
    for (&number, decision) in decisions {
        add(number, decide(decision));
        add(number + 1, default_code.clone());
    }
    let unknown = if default.is_errno() { Action::ENOSYS } else { default };
    add(architecture.end().max(decisions.keys().last().map_or(0, |last| last + 1)), vec![ret(unknown)]);
    if architecture == Architecture::X86_64 {
        add(X32, vec![ret(Action::ENOSYS)]);
    }
    // Neighbours with the same code are one range.
    leaves.dedup_by(|next, previous| next.1 == previous.1);
    leaves
}

/// Binary search for the range of the number that is loaded.
fn search(leaves: &[(u32, Vec<BpfInstruction>)]) -> Vec<BpfInstruction> {
    let (low, high) = leaves.split_at(leaves.len() / 2);
    let Some((first, code)) = high.first() else { return Vec::new() };
    if low.is_empty() {
        return code.clone();
    }
    let (below, above) = (search(low), search(high));
    let mut program = match u8::try_from(below.len()) {
        Ok(length) => vec![BpfInstruction(JUMP_IF_AT_LEAST, length, 0, *first)],
        Err(_) => vec![
            BpfInstruction(JUMP_IF_AT_LEAST, 0, 1, *first),
            BpfInstruction(JUMP, 0, 0, u32::try_from(below.len()).unwrap_or(u32::MAX)),
        ],
    };
    program.extend(below);
    program.extend(above);
    program
}

fn decide(decision: &Decision) -> Vec<BpfInstruction> {
    let mut code = Vec::new();
    for (conditions, action) in &decision.rules {
        code.extend(rule(conditions, *action));
    }
    code.push(ret(decision.otherwise));
    code
}

/// Where a jump leads to.
#[derive(Clone, Copy)]
enum Target {
    /// The next instruction.
    Next,
    /// The condition holds: the next condition.
    Holds,
    /// It does not: the next rule.
    Fails,
}

/// An instruction whose jumps have no offsets yet.
type Draft = (u16, u32, Target, Target);

/// Returns `action` if all conditions hold, and continues behind the code otherwise.
fn rule(conditions: &[Condition], action: Action) -> Vec<BpfInstruction> {
    let drafts: Vec<Vec<Draft>> = conditions.iter().map(|condition| draft(*condition)).collect();
    // The conditions and the return.
    let length = drafts.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(length);
    for condition in drafts {
        let end = code.len() + condition.len();
        for (operation, operand, if_true, if_false) in condition {
            let here = code.len();
            let offset = |target| {
                let distance = match target {
                    Target::Next => 0,
                    Target::Holds => end - here - 1,
                    Target::Fails => length - here - 1,
                };
                // Six conditions have less than 60 instructions.
                u8::try_from(distance).unwrap_or(u8::MAX)
            };
            code.push(BpfInstruction(operation, offset(if_true), offset(if_false), operand));
        }
    }
    code.push(ret(action));
    code
}

/// The last instruction of a condition continues with the next one if it holds.
fn draft(condition: Condition) -> Vec<Draft> {
    use Target::{Fails, Holds, Next};
    let [low, high] = [condition.value as u32, (condition.value >> 32) as u32];
    let offset = ARGUMENTS + u32::from(condition.argument) * 8;
    let plain = |operation, operand| (operation, operand, Next, Next);
    let (load_low, load_high) = (plain(LOAD, offset), plain(LOAD, offset + 4));
    match condition.comparison {
        Comparison::Equal => {
            vec![load_high, (JUMP_IF_EQUAL, high, Next, Fails), load_low, (JUMP_IF_EQUAL, low, Next, Fails)]
        }
        Comparison::NotEqual => {
            vec![load_high, (JUMP_IF_EQUAL, high, Next, Holds), load_low, (JUMP_IF_EQUAL, low, Fails, Next)]
        }
        Comparison::Masked(mask) => vec![
            load_high,
            plain(AND, (mask >> 32) as u32),
            (JUMP_IF_EQUAL, high, Next, Fails),
            load_low,
            plain(AND, mask as u32),
            (JUMP_IF_EQUAL, low, Next, Fails),
        ],
        Comparison::Greater | Comparison::GreaterOrEqual => vec![
            load_high,
            (JUMP_IF_ABOVE, high, Holds, Next),
            (JUMP_IF_EQUAL, high, Next, Fails),
            load_low,
            match condition.comparison {
                Comparison::Greater => (JUMP_IF_ABOVE, low, Next, Fails),
                _ => (JUMP_IF_AT_LEAST, low, Next, Fails),
            },
        ],
        Comparison::Less | Comparison::LessOrEqual => vec![
            load_high,
            (JUMP_IF_ABOVE, high, Fails, Next),
            (JUMP_IF_EQUAL, high, Next, Holds),
            load_low,
            match condition.comparison {
                Comparison::Less => (JUMP_IF_AT_LEAST, low, Fails, Next),
                _ => (JUMP_IF_ABOVE, low, Fails, Next),
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system call as the kernel shows it to a filter.
    #[derive(Debug, Clone, Copy)]
    struct Call {
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    }

    /// Runs a program as the kernel does, which accepts forward jumps only.
    fn run(program: &[BpfInstruction], call: Call) -> Action {
        let word = |offset: u32| match offset {
            NUMBER => call.number,
            ARCHITECTURE => call.architecture,
            _ => {
                let argument = call.arguments[(offset - ARGUMENTS) as usize / 8];
                if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let BpfInstruction(code, if_true, if_false, operand) = program[at];
            let jump = |condition| usize::from(if condition { if_true } else { if_false });
            at += 1 + match code {
                LOAD => {
                    a = word(operand);
                    0
                }
                AND => {
                    a &= operand;
                    0
                }
                JUMP => operand as usize,
                JUMP_IF_EQUAL => jump(a == operand),
                JUMP_IF_ABOVE => jump(a > operand),
                JUMP_IF_AT_LEAST => jump(a >= operand),
                RETURN => return Action(operand),
                other => panic!("{other}"),
            };
        }
    }

    fn holds(condition: &Condition, arguments: &[u64; 6]) -> bool {
        let (argument, value) = (arguments[usize::from(condition.argument)], condition.value);
        match condition.comparison {
            Comparison::NotEqual => argument != value,
            Comparison::Less => argument < value,
            Comparison::LessOrEqual => argument <= value,
            Comparison::Equal => argument == value,
            Comparison::GreaterOrEqual => argument >= value,
            Comparison::Greater => argument > value,
            Comparison::Masked(mask) => argument & mask == value,
        }
    }

    const DEFAULT: Action = Action::errno(1);

    fn expected(table: &Table, call: Call) -> Action {
        let branch = table.iter().find(|(architecture, _)| architecture.audit() == call.architecture);
        let Some((architecture, decisions)) = branch else { return Action::KILL_PROCESS };
        match decisions.get(&call.number) {
            Some(decision) => {
                let rule = decision.rules.iter().find(|(conditions, _)| {
                    conditions.iter().all(|condition| holds(condition, &call.arguments))
                });
                rule.map_or(decision.otherwise, |(_, action)| *action)
            }
            None if call.number >= architecture.end() => Action::ENOSYS,
            None => DEFAULT,
        }
    }

    /// Values around the limits of the comparisons, in both halves.
    const VALUES: [u64; 9] = [0, 1, 40, 41, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0028, 0x7e02_0000, u64::MAX];

    fn table() -> Table {
        let comparisons = [
            Comparison::NotEqual,
            Comparison::Less,
            Comparison::LessOrEqual,
            Comparison::Equal,
            Comparison::GreaterOrEqual,
            Comparison::Greater,
        ];
        let mut decisions = BTreeMap::new();
        let mut number = 0;
        for value in VALUES {
            for comparison in comparisons {
                let condition = Condition { argument: (number % 6) as u8, comparison, value };
                let other = Condition { argument: 5, comparison: Comparison::Masked(0xff), value: 40 };
                let rules = vec![
                    (vec![condition, other], Action::ALLOW),
                    (vec![other], Action::errno(number as u16)),
                    (vec![condition], Action::KILL_THREAD),
                ];
                decisions.insert(number, Decision { rules, otherwise: Action::TRAP });
                // Gaps of one and more numbers, and runs.
                number += 1 + number % 3;
            }
        }
        for unconditional in 300..400 {
            let otherwise =
                if unconditional < 350 { Action::ALLOW } else { Action::errno(unconditional as u16) };
            decisions.insert(unconditional, Decision { rules: Vec::new(), otherwise });
        }
        let small = BTreeMap::from([(3, Decision { rules: Vec::new(), otherwise: Action::ALLOW })]);
        Table::from([(Architecture::X86_64, decisions), (Architecture::X86, small)])
    }

    #[test]
    fn a_program_decides_as_its_rules_say() {
        let table = table();
        let program = compile(&table, DEFAULT);
        assert!(program.len() < MAX_LENGTH, "{}", program.len());
        let numbers = (0..600).chain([X32 - 1, X32, X32 + 1, X32 + 165, u32::MAX]);
        for number in numbers {
            for architecture in [Architecture::X86_64.audit(), Architecture::X86.audit(), 0xc000_00b7] {
                for first in VALUES {
                    for last in [0, 40, 0x1_0000_0028] {
                        let arguments = [first, first, first, first, first, last];
                        let call = Call { architecture, number, arguments };
                        assert_eq!(run(&program, call), expected(&table, call), "{call:x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_empty_filter_is_its_default() {
        let table = Table::from([(Architecture::X86_64, BTreeMap::new())]);
        let program = compile(&table, Action::ALLOW);
        let call = |architecture: Architecture, number| {
            run(&program, Call { architecture: architecture.audit(), number, arguments: [0; 6] })
        };
        assert_eq!(call(Architecture::X86_64, 0), Action::ALLOW);
        assert_eq!(call(Architecture::X86_64, 9999), Action::ALLOW);
        // Its numbers mean other calls.
        assert_eq!(call(Architecture::X86_64, X32), Action::ENOSYS);
        assert_eq!(call(Architecture::X86, 0), Action::KILL_PROCESS);
    }
}
