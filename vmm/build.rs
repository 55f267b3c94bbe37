//! Compiles the system call filters of `src/jail/filters.json` into BPF programs, so that a machine starts with them
//! ready made and a mistake in them is a mistake of the build.

#[path = "src/jail/rules.rs"]
mod rules;

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use seccompiler::BpfProgram;

const SOURCE: &str = "src/jail/filters.json";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=src/jail/rules.rs");
    let source = fs::read_to_string(SOURCE).map_err(|error| format!("cannot read {SOURCE}: {error}"))?;
    let code = generate(&source).map_err(|error| format!("cannot use {SOURCE}: {error}"))?;
    let path = Path::new(&env::var("OUT_DIR")?).join("filters.rs");
    fs::write(&path, code).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(())
}

/// A constant for each kind of thread: its filter.
fn generate(source: &str) -> Result<String, Box<dyn Error>> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let mut code = String::new();
    for (name, rules) in rules::lists(source)? {
        constant(&mut code, &name, &rules::compile(&rules, &arch)?)?;
    }
    Ok(code)
}

fn constant(code: &mut String, name: &str, program: &BpfProgram) -> std::fmt::Result {
    let constant = name.to_uppercase();
    writeln!(
        code,
        "pub(super) const {constant}: [sock_filter; {}] = [",
        program.len()
    )?;
    for instruction in program {
        let (op, jt, jf, k) = (instruction.code, instruction.jt, instruction.jf, instruction.k);
        writeln!(
            code,
            "    sock_filter {{ code: {op}, jt: {jt}, jf: {jf}, k: {k:#x} }},"
        )?;
    }
    writeln!(code, "];")
}
