//! The filters on trial, for the test that each of their rules is needed (`tests/e2e/test_filters.py`): either every call
//! that a filter lets through is noted, or one rule is left out. Not part of a release.
//!
//! Notes are taken by the filters themselves, the same ones in every other respect: where they would let a call through, they
//! have the kernel ask first (seccomp_unotify(2)). A thread that no filter is around is asked, finds the rule that the call
//! is let through by, and lets it through.

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering};
use std::{io, ptr, thread};

use nix::errno::Errno;
use seccompiler::{BpfProgram, apply_filter, sock_filter};
use vmm_sys_util::eventfd::EventFd;

use super::{JailError, Thread, rules};

const RULES: &str = include_str!("filters.json");
/// More threads than any machine has.
const MOST_THREADS: usize = 64;
/// How often is looked for a thread that has said that it is about to be asked for.
const LOOK_MS: libc::c_int = 1;
const NONE: RawFd = -1;

const KVM_RUN: u32 = 0xae80;
/// Lets a vCPU run without being asked: by far the most frequent call of all, and a test of its own leaves its rule out.
const RUNS: [sock_filter; 5] = [
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
    instruction(
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        3,
        libc::SYS_ioctl as u32,
    ),
    // The lower half of the second argument.
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 24),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, KVM_RUN),
    instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
];

/// One that goes on with the next instruction, or so many later where a test fails.
const fn instruction(code: u32, jf: u8, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    }
}

/// What is done to the filters of a machine.
#[derive(Debug)]
pub struct Trial(Kind);

#[derive(Debug)]
enum Kind {
    Without { thread: Thread, filter: BpfProgram },
    Noting(Notes),
}

impl Trial {
    /// Leaves out one rule: `THREAD:CALL`, or `THREAD:CALL:INDEX` where there are several for a call.
    pub fn without(rule: &str) -> Result<Self, Box<dyn Error>> {
        let mut words = rule.split(':');
        let (kind, call) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let index: usize = words.next().unwrap_or("0").parse()?;
        let mut rules = rules::lists(RULES)?
            .remove(kind)
            .ok_or("there is no such thread")?;
        let mut of_call =
            (0..rules.len()).filter(|at| rules.get(*at).is_some_and(|it| it["syscall"] == call));
        let at = of_call.nth(index).ok_or("there is no such rule")?;
        rules.remove(at);
        let filter = rules::compile(&rules, std::env::consts::ARCH)?;
        let thread = thread_of(kind)?;
        Ok(Self(Kind::Without { thread, filter }))
    }

    /// Notes which rules are used: a byte for each in this file becomes 1, in the order of the list, by kind of thread. To be
    /// called in the jail, since a thread is started here.
    pub fn noting(file: &File) -> Result<&'static Self, Box<dyn Error>> {
        let trial: &'static Self = Box::leak(Box::new(Self(Kind::Noting(Notes::new(file)?))));
        let Kind::Noting(notes) = &trial.0 else {
            return Err("no notes are taken".into());
        };
        thread::Builder::new()
            .name("notes".into())
            .spawn(|| notes.take())?;
        Ok(trial)
    }

    pub(super) fn confine(&self, thread: Thread) -> Result<(), JailError> {
        match &self.0 {
            Kind::Without {
                thread: other,
                filter,
            } if *other == thread => Ok(apply_filter(filter)?),
            Kind::Without { .. } => Ok(super::filters::install(thread)?),
            Kind::Noting(notes) => notes.confine(thread).map_err(|source| JailError::Enter {
                doing: "take notes",
                source,
            }),
        }
    }
}

fn thread_of(kind: &str) -> Result<Thread, Box<dyn Error>> {
    Ok(match kind {
        "main" => Thread::Main,
        "vcpu" => Thread::Vcpu,
        "balloon" => Thread::Balloon,
        "block" => Thread::Block,
        "net" => Thread::Net,
        "rng" => Thread::Rng,
        "vsock" => Thread::Vsock,
        _ => return Err(format!("no thread is a {kind:?}").into()),
    })
}

/// A kind of thread: each of its rules as a filter of its own, and where their notes begin.
#[derive(Debug)]
struct List {
    thread: Thread,
    filters: Vec<BpfProgram>,
    first_note: usize,
}

/// A thread that is asked for. The list is there before the descriptor is.
#[derive(Debug)]
struct Asked {
    list: AtomicUsize,
    listener: AtomicI32,
}

/// Who takes notes allocates nothing: a thread may hold the allocator's lock while it waits with its call.
#[derive(Debug)]
struct Notes {
    lists: Vec<List>,
    asked: Vec<Asked>,
    count: AtomicUsize,
    /// Counts threads that are about to be asked for.
    coming: EventFd,
    /// Of the file, mapped; as many as there are rules.
    notes: AtomicPages,
}

#[derive(Debug)]
struct AtomicPages(&'static [AtomicU8]);

impl Notes {
    fn new(file: &File) -> Result<Self, Box<dyn Error>> {
        let mut lists = Vec::new();
        let mut count = 0;
        for (kind, rules) in rules::lists(RULES)? {
            let alone = |rule| rules::compile(std::slice::from_ref(rule), std::env::consts::ARCH);
            lists.push(List {
                thread: thread_of(&kind)?,
                filters: rules.iter().map(alone).collect::<Result<_, _>>()?,
                first_note: count,
            });
            count += rules.len();
        }
        let asked = || Asked {
            list: AtomicUsize::new(0),
            listener: AtomicI32::new(NONE),
        };
        Ok(Self {
            lists,
            asked: (0..MOST_THREADS).map(|_| asked()).collect(),
            count: AtomicUsize::new(0),
            coming: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            notes: AtomicPages::map(file, count)?,
        })
    }

    fn confine(&self, thread: Thread) -> Result<(), Errno> {
        let list = self.lists.iter().position(|list| list.thread == thread);
        let slot = self.asked.get(self.count.fetch_add(1, Ordering::Relaxed));
        let (Some(list), Some(slot)) = (list, slot) else {
            return Err(Errno::E2BIG);
        };
        slot.list.store(list, Ordering::Relaxed);
        let mut filter: Vec<sock_filter> = match thread {
            Thread::Vcpu => RUNS.to_vec(),
            _ => Vec::new(),
        };
        filter.extend(thread.filter().iter().map(|instruction| sock_filter {
            k: match instruction.k {
                libc::SECCOMP_RET_ALLOW if is_return(instruction) => libc::SECCOMP_RET_USER_NOTIF,
                k => k,
            },
            ..instruction.clone()
        }));
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?,
            filter: filter.as_mut_ptr().cast(),
        };
        self.coming.write(1).map_err(|_| Errno::EIO)?;
        // SAFETY: the program is the array just made, whose elements are laid out as the kernel has them.
        let listener = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            )
        };
        // Nothing comes before this that might be a call.
        let listener = Errno::result(listener)?;
        slot.listener.store(listener as RawFd, Ordering::Release);
        Ok(())
    }

    /// Lets through what threads ask for, until the process ends.
    fn take(&self) {
        let coming = libc::pollfd {
            fd: self.coming.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut watched = [const {
            libc::pollfd {
                fd: NONE,
                events: libc::POLLIN,
                revents: 0,
            }
        }; MOST_THREADS + 1];
        let mut gone = [false; MOST_THREADS];
        loop {
            let mut here = 0;
            for ((slot, watched), gone) in self.asked.iter().zip(&mut watched).zip(&gone) {
                let listener = slot.listener.load(Ordering::Acquire);
                here += usize::from(listener != NONE);
                watched.fd = if *gone { NONE } else { listener };
            }
            // One that is coming says nothing when it is here: it would be asked for that.
            let timeout = if here < self.count.load(Ordering::Relaxed) {
                LOOK_MS
            } else {
                -1
            };
            if let Some(last) = watched.last_mut() {
                *last = coming;
            }
            // SAFETY: the array is live, and its length is given.
            unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, timeout) };
            // It fails when the event was another.
            let _ = self.coming.read();
            for ((slot, watched), gone) in self.asked.iter().zip(&watched).zip(&mut gone) {
                if watched.revents & libc::POLLIN != 0 {
                    self.let_through(watched.fd, slot.list.load(Ordering::Relaxed));
                } else if watched.revents != 0 {
                    // The thread has ended.
                    *gone = true;
                }
            }
        }
    }

    fn let_through(&self, listener: RawFd, list: usize) {
        // SAFETY: the structure is of numbers, which the kernel wants to be zero.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open as long as the process is, and the structure is what the kernel fills.
        if unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) } < 0 {
            // A signal has taken the thread away.
            return;
        }
        if let Some(list) = self.lists.get(list) {
            let rule = list
                .filters
                .iter()
                .position(|filter| lets_through(filter, &asked.data));
            let note = rule.and_then(|rule| self.notes.0.get(list.first_note + rule));
            if let Some(note) = note {
                note.store(1, Ordering::Relaxed);
            }
        }
        let mut answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // SAFETY: as above. It fails where a signal has taken the thread away.
        unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }
}

impl AtomicPages {
    fn map(file: &File, bytes: usize) -> io::Result<Self> {
        if file.metadata()?.len() < bytes as u64 {
            return Err(io::Error::other(format!("there is no room for {bytes} notes")));
        }
        // SAFETY: a new mapping of a file that is open.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: so many bytes were mapped, nothing unmaps them, and all who have them use them as atomics.
        Ok(Self(unsafe { std::slice::from_raw_parts(mapped.cast(), bytes) }))
    }
}

fn is_return(instruction: &sock_filter) -> bool {
    u32::from(instruction.code) == libc::BPF_RET | libc::BPF_K
}

/// What a filter says of a call: the instructions that the compiler makes (bpf(4), seccomp(2)).
fn lets_through(filter: &[sock_filter], call: &libc::seccomp_data) -> bool {
    let word = |offset: u32| -> u32 {
        let at = offset.saturating_sub(16) / 8;
        match offset {
            0 => call.nr as u32,
            4 => call.arch,
            16.. if offset.is_multiple_of(8) => call.args.get(at as usize).map_or(0, |arg| *arg as u32),
            16.. => call.args.get(at as usize).map_or(0, |arg| (*arg >> 32) as u32),
            _ => 0,
        }
    };
    let (mut at, mut value) = (0, 0u32);
    while let Some(instruction) = filter.get(at) {
        let k = instruction.k;
        let test = match u32::from(instruction.code) {
            code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                value = word(k);
                None
            }
            code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => {
                value &= k;
                None
            }
            code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => Some(value == k),
            code if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => Some(value > k),
            code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => Some(value >= k),
            code if code == libc::BPF_JMP | libc::BPF_JA => {
                at += k as usize;
                None
            }
            _ => return is_return(instruction) && k == libc::SECCOMP_RET_ALLOW,
        };
        at += 1 + test.map_or(0, |test| {
            usize::from(if test { instruction.jt } else { instruction.jf })
        });
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(nr: libc::c_long, args: [u64; 6]) -> libc::seccomp_data {
        const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
        libc::seccomp_data {
            nr: nr as libc::c_int,
            arch: AUDIT_ARCH_X86_64,
            instruction_pointer: 0,
            args,
        }
    }

    #[test]
    fn a_filter_is_read_as_the_kernel_reads_it() {
        let lists = rules::lists(RULES).unwrap();
        let filter = rules::compile(&lists["block"], "x86_64").unwrap();
        let said = |nr, args| lets_through(&filter, &call(nr, args));
        assert!(said(libc::SYS_read, [0; 6]));
        assert!(said(libc::SYS_preadv, [7; 6]));
        assert!(!said(libc::SYS_openat, [0; 6]));
        assert!(!said(libc::SYS_ioctl, [0; 6]));
        // Its own rule with an argument, and one of those of every thread.
        assert!(said(libc::SYS_fallocate, [5, 3, 0, 0, 0, 0]));
        assert!(!said(libc::SYS_fallocate, [5, 0, 0, 0, 0, 0]));
        // Anonymous memory with more flags; executable memory; a file.
        assert!(said(libc::SYS_mmap, [0, 4096, 3, 0x4022, !0, 0]));
        assert!(!said(libc::SYS_mmap, [0, 4096, 7, 0x22, !0, 0]));
        assert!(!said(libc::SYS_mmap, [0, 4096, 3, 0x2, 5, 0]));
        // What comes before the filter of a vCPU lets through its runs, and leaves the rest to the filter.
        let with = [&RUNS[..], Thread::Vcpu.filter()].concat();
        let asks = [&RUNS[..], Thread::Net.filter()].concat();
        let runs = call(libc::SYS_ioctl, [3, KVM_RUN.into(), 0, 0, 0, 0]);
        assert!(lets_through(&with, &runs) && lets_through(&asks, &runs));
        assert!(!lets_through(Thread::Net.filter(), &runs));
        assert!(!lets_through(
            &asks,
            &call(libc::SYS_ioctl, [3, 0xae81, 0, 0, 0, 0])
        ));
        assert!(lets_through(&asks, &call(libc::SYS_readv, [KVM_RUN.into(); 6])));
    }

    #[test]
    fn what_can_be_left_out_is_a_rule() {
        for rule in ["block:read", "main:ioctl:13", "vcpu:ioctl", "net:madvise"] {
            assert!(Trial::without(rule).is_ok(), "{rule}");
        }
        for rule in [
            "",
            "block",
            "every:read",
            "block:open",
            "block:read:1",
            "main:ioctl:14",
            "main:ioctl:x",
        ] {
            assert!(Trial::without(rule).is_err(), "{rule}");
        }
        let Ok(Trial(Kind::Without { thread, filter })) = Trial::without("main:ioctl:0") else {
            panic!("no rule is left out");
        };
        assert_eq!(thread, Thread::Main);
        const KVM_GET_MP_STATE: u64 = 0x8004_ae98;
        assert!(!lets_through(
            &filter,
            &call(libc::SYS_ioctl, [3, KVM_GET_MP_STATE, 0, 0, 0, 0])
        ));
        assert!(lets_through(&filter, &call(libc::SYS_read, [0; 6])));
    }
}
