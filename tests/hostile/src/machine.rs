//! The machine below: ports, memory, time, the serial port, the ways to end. Knows nothing of virtio.

use core::arch::asm;
use core::fmt::{self, Write};
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the VMM puts its devices.
pub const DEVICES: Range<u64> = 0xd000_0000..0xd001_3000;
/// The memory that is given to devices. Nothing of the program is there: it is after it (`link.ld`).
pub const DMA: Range<u64> = 8 << 20..48 << 20;
const SERIAL: u16 = 0x3f8;
const POWER: u16 = 0x600;
/// Longest command line that is understood.
const MAX_CMDLINE_BYTES: usize = 128;
/// What is below is the VMM's: the start info, the memory map, the command line.
const LOW_MEMORY_END: u64 = 0xa_0000;

static RAM_END: AtomicU64 = AtomicU64::new(0);

/// What the VMM said of the machine.
pub struct StartInfo {
    cmdline: [u8; MAX_CMDLINE_BYTES],
    len: usize,
}

impl StartInfo {
    /// Reads the structures of the PVH boot protocol at `address`.
    pub fn read(address: u64) -> Self {
        let map = low(address + 40);
        let entries = low(address + 48) & 0xffff_ffff;
        // Address, size, type: 24 bytes an entry, type 1 is RAM.
        let ends = (0..entries)
            .map(|index| map + 24 * index)
            .filter(|entry| low(entry + 16) & 0xffff_ffff == 1)
            .map(|entry| low(entry) + low(entry + 8));
        RAM_END.store(ends.max().unwrap_or(0), Ordering::Relaxed);
        // Copied: devices may write over it.
        let start = low(address + 24);
        let mut cmdline = [0; MAX_CMDLINE_BYTES];
        for (byte, at) in cmdline.iter_mut().zip(start..) {
            *byte = low(at) as u8;
        }
        let len = cmdline.iter().take_while(|byte| **byte != 0).count();
        Self { cmdline, len }
    }

    pub fn cmdline(&self) -> &str {
        core::str::from_utf8(&self.cmdline[..self.len]).unwrap_or("")
    }
}

/// Eight bytes of what the VMM has put below 640 KiB.
fn low(address: u64) -> u64 {
    assert!((0x1000..LOW_MEMORY_END - 8).contains(&address));
    // SAFETY: it is RAM, mapped one to one, and nothing of the program is there.
    unsafe { ptr::read_unaligned(address as *const u64) }
}

/// Where the machine's memory ends; it is beyond what may be given to devices.
pub fn ram_end() -> u64 {
    RAM_END.load(Ordering::Relaxed)
}

fn checked(address: u64, bytes: usize) {
    let fits = |range: Range<u64>| range.contains(&address) && bytes as u64 <= range.end - address;
    assert!(fits(DMA) || fits(DEVICES), "the attack itself uses {address:#x}");
}

/// Reads memory that devices share, or their registers.
pub fn read<T: Copy>(address: u64) -> T {
    checked(address, size_of::<T>());
    // SAFETY: it is mapped one to one and nothing of the program is there (just checked). Callers read plain numbers.
    unsafe { ptr::read_volatile(address as *const T) }
}

/// Writes memory that devices share, or their registers; aligned or not.
pub fn write<T: Copy>(address: u64, value: T) {
    checked(address, size_of::<T>());
    // SAFETY: it is mapped one to one and nothing of the program is there (just checked). This processor takes any
    // alignment.
    unsafe { asm_write(address, value) }
}

/// A store of one instruction, of the width that `T` has.
///
/// # Safety
/// The address is mapped and nothing of the program is there.
unsafe fn asm_write<T: Copy>(address: u64, value: T) {
    let value = ptr::from_ref(&value);
    // SAFETY: the caller promises it of the address; the value is as long as each branch reads.
    unsafe {
        match size_of::<T>() {
            1 => asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) *value.cast::<u8>()),
            2 => asm!("mov word ptr [{}], {:x}", in(reg) address, in(reg) *value.cast::<u16>()),
            4 => asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) *value.cast::<u32>()),
            8 => asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) *value.cast::<u64>()),
            16 => {
                asm!("movups {1}, [{2}]", "movups [{0}], {1}", in(reg) address, out(xmm_reg) _, in(reg) value)
            }
            bytes => panic!("there is no store of {bytes} bytes"),
        }
    }
}

/// Fills memory that devices share.
pub fn fill(address: u64, bytes: usize, value: u8) {
    assert!(DMA.contains(&address) && bytes as u64 <= DMA.end - address);
    // SAFETY: it is RAM, mapped one to one, and nothing of the program is there.
    unsafe { ptr::write_bytes(address as *mut u8, value, bytes) }
}

/// Moves bytes within one instruction from one address to the other.
pub fn move_string(from: u64, to: u64, bytes: usize) {
    checked(from, bytes);
    checked(to, bytes);
    // SAFETY: both ranges are mapped and nothing of the program is there.
    unsafe {
        asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") bytes => _);
    }
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: no port of this machine changes the program's memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

/// A port access of two or four bytes.
pub fn out_wide(port: u16, value: u32) {
    // SAFETY: no port of this machine changes the program's memory.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value as u16);
        asm!("out dx, eax", in("dx") port, in("eax") value);
    }
}

/// Writes and reads a port many times within one instruction, from and to memory that devices share.
pub fn port_string(port: u16, address: u64, bytes: usize) {
    assert!(DMA.contains(&address) && bytes as u64 <= DMA.end - address);
    // SAFETY: the range is RAM and nothing of the program is there.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") address => _, inout("rcx") bytes => _);
        asm!("rep insb", in("dx") port, inout("rdi") address => _, inout("rcx") bytes => _);
    }
}

/// Cycles since some time.
pub fn now() -> u64 {
    // SAFETY: every processor here has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits until something is so, at most for so many cycles; returns whether it is.
pub fn wait(cycles: u64, mut is_so: impl FnMut() -> bool) -> bool {
    let start = now();
    loop {
        if is_so() {
            return true;
        }
        if now().wrapping_sub(start) > cycles {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Does nothing from now on.
pub fn idle() -> ! {
    loop {
        // SAFETY: interrupts are off, so nothing comes after it.
        unsafe { asm!("cli", "hlt") }
    }
}

#[cfg(panic = "abort")]
unsafe extern "C" {
    static second_start: u8;
    static second_start_end: u8;
}

/// Has the second processor start, from anew if it did before; it goes to `second_main`.
#[cfg(panic = "abort")]
pub fn start_second_processor() {
    const START: u64 = 0x8000;
    const COMMAND: *mut u32 = 0xfee0_0300 as *mut u32;
    const TARGET: *mut u32 = 0xfee0_0310 as *mut u32;
    const SPURIOUS: *mut u32 = 0xfee0_00f0 as *mut u32;
    const SWITCHED_ON: u32 = 0x1ff;
    const INIT: u32 = 0x4500;
    const STARTUP: u32 = 0x4600 | (START >> 12) as u32;
    // SAFETY: what is copied is between the two labels; below 640 KiB there is nothing of the program, and the local APIC's
    // registers are mapped one to one. The second processor has a stack of its own.
    unsafe {
        let code = &raw const second_start;
        let bytes = (&raw const second_start_end).offset_from_unsigned(code);
        ptr::copy_nonoverlapping(code, START as *mut u8, bytes);
        SPURIOUS.write_volatile(SWITCHED_ON);
        for command in [INIT, STARTUP] {
            TARGET.write_volatile(1 << 24);
            COMMAND.write_volatile(command);
        }
    }
}

#[cfg(not(panic = "abort"))]
pub fn start_second_processor() {}

/// ACPI S5.
pub fn power_off() -> ! {
    out8(POWER, 0x34);
    idle()
}

/// The ACPI reset register.
pub fn reset() -> ! {
    out8(POWER + 2, 1);
    idle()
}

/// A fault without an interrupt table.
pub fn triple_fault() -> ! {
    // SAFETY: it does not return.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Has the processor take its next instruction from where nothing is.
pub fn run_nowhere() -> ! {
    // SAFETY: it does not return.
    unsafe { asm!("jmp {}", in(reg) 0xd010_0000_u64, options(noreturn)) }
}

/// Writes to a device by an instruction that KVM does not emulate.
pub fn unemulated() -> ! {
    // SAFETY: it writes to a register of a device, and nothing else.
    unsafe { asm!("fldz", "fbstp [{}]", in(reg) DEVICES.start) }
    idle()
}

/// The serial port.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(SERIAL, byte));
        Ok(())
    }
}

/// Says a line.
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        // The port takes everything.
        let _ = writeln!($crate::machine::Serial, $($argument)*);
    }};
}
pub(crate) use say;

/// A small generator of pseudo-random numbers (xorshift), the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_of<T: Copy, const N: usize>(&mut self, values: [T; N]) -> T {
        values[self.below(N as u64) as usize]
    }
}
