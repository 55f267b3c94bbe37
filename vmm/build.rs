//! Compiles the system call filters of `src/jail/filters.json` into BPF programs, so that a machine starts with them
//! ready made and a mistake in them is a mistake of the build.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use seccompiler::{BpfProgram, compile_from_json};
use serde_json::Value;

const SOURCE: &str = "src/jail/filters.json";
/// What every kind of thread is allowed, besides its own.
const EVERY: &str = "every";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let source = fs::read_to_string(SOURCE).map_err(|error| format!("cannot read {SOURCE}: {error}"))?;
    let code = generate(&source).map_err(|error| format!("cannot use {SOURCE}: {error}"))?;
    let path = Path::new(&env::var("OUT_DIR")?).join("filters.rs");
    fs::write(&path, code).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(())
}

/// A constant for each kind of thread: its filter.
fn generate(source: &str) -> Result<String, Box<dyn Error>> {
    let mut kinds: HashMap<String, Vec<Value>> = serde_json::from_str(source)?;
    let every = kinds.remove(EVERY).ok_or("it has no list for every thread")?;
    let mut names: Vec<String> = kinds.keys().cloned().collect();
    names.sort();
    let mut code = String::new();
    for name in names {
        let own = kinds.remove(&name).ok_or("a list is missing")?;
        let rules: Vec<Value> = every.iter().cloned().chain(own).collect();
        let filter = serde_json::json!({
            &name: {"mismatch_action": "kill_process", "match_action": "allow", "filter": rules}
        });
        let arch = env::var("CARGO_CFG_TARGET_ARCH")?.as_str().try_into()?;
        let mut compiled = compile_from_json(filter.to_string().as_bytes(), arch)?;
        let program = compiled.remove(&name).ok_or("a filter is missing")?;
        constant(&mut code, &name, &program)?;
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
