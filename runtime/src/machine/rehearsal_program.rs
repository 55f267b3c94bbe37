//! The program of a template's trial: it touches as much of its own file and of its memory as a small program does, writes a line,
//! and ends. So the trial shows which of its free pages the guest gives out first, and they are there when a task needs them.

/// Of the program's file, which the guest reads; 1 MiB.
const FILE_PAGES: u32 = 256;
/// Of its memory, which it writes to; 256 KiB.
const DATA_PAGES: u32 = 64;
const PAGE_BYTES: u32 = 4096;

const HEADER_BYTES: u16 = 64;
const SEGMENT_BYTES: u16 = 56;
const SEGMENTS: u16 = 2;
const BASE: u32 = 0x40_0000;
const DATA: u32 = 0x80_0000;
const LINE: &[u8] = b"hi\n";
const EXECUTE: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

/// An executable for x86-64 (System V ABI, "ELF-64 Object File Format").
pub(super) fn elf() -> Vec<u8> {
    let headers = HEADER_BYTES + SEGMENTS * SEGMENT_BYTES;
    let file_bytes = FILE_PAGES * PAGE_BYTES;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_X86_64, EV_CURRENT.
    elf.extend([2u16, 62].map(u16::to_le_bytes).as_flattened());
    elf.extend(1u32.to_le_bytes());
    let (entry, segments, sections) = (u64::from(BASE) + u64::from(headers), u64::from(HEADER_BYTES), 0);
    elf.extend([entry, segments, sections].map(u64::to_le_bytes).as_flattened());
    elf.extend(0u32.to_le_bytes());
    elf.extend(
        [HEADER_BYTES, SEGMENT_BYTES, SEGMENTS, 0, 0, 0]
            .map(u16::to_le_bytes)
            .as_flattened(),
    );
    elf.extend(segment(READ | EXECUTE, BASE, file_bytes, file_bytes));
    elf.extend(segment(READ | WRITE, DATA, 0, DATA_PAGES * PAGE_BYTES));
    elf.extend(code());
    elf.resize(file_bytes as usize, 0);
    elf
}

/// A PT_LOAD of the beginning of the file.
fn segment(access: u32, address: u32, in_file: u32, in_memory: u32) -> Vec<u8> {
    let address = u64::from(address);
    let mut segment = [1, access].map(u32::to_le_bytes).as_flattened().to_vec();
    let rest = [
        0,
        address,
        address,
        in_file.into(),
        in_memory.into(),
        PAGE_BYTES.into(),
    ];
    segment.extend(rest.map(u64::to_le_bytes).as_flattened());
    segment
}

fn code() -> Vec<u8> {
    // mov al, [rsi]; mov [rsi], al.
    let mut code = for_each_page(BASE, FILE_PAGES, [0x8a, 0x06]);
    code.extend(for_each_page(DATA, DATA_PAGES, [0x88, 0x06]));
    let end = [
        b"\xb8\x01\0\0\0".as_slice(), // mov eax, 1 (write)
        b"\xbf\x01\0\0\0",            // mov edi, 1
        b"\x48\x8d\x35\x10\0\0\0",    // lea rsi, [rip + 16]: the line
        b"\xba\x03\0\0\0",            // mov edx, 3
        b"\x0f\x05",                  // syscall
        b"\xb8\x3c\0\0\0",            // mov eax, 60 (exit)
        b"\x31\xff",                  // xor edi, edi
        b"\x0f\x05",                  // syscall
        LINE,
    ];
    code.extend(end.concat());
    code
}

/// A loop over pages, with the address of each in RSI.
fn for_each_page(first: u32, count: u32, does: [u8; 2]) -> Vec<u8> {
    [
        [0xbe].as_slice(), // mov esi, first
        &first.to_le_bytes(),
        &[0xb9], // mov ecx, count
        &count.to_le_bytes(),
        &does,
        b"\x48\x81\xc6\0\x10\0\0", // add rsi, 4096
        b"\xff\xc9",               // dec ecx
        b"\x75\xf3",               // jnz: back to what it does
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_writes_its_line_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, elf()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&path).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), LINE));
    }
}
