//! The program inside the test images. Without arguments it is a small web server; its other modes are the guests that
//! misbehave: one that takes too much memory, and one that sends frames with an address that is not its own.

mod get;
mod http;
mod packet;
mod spoof;
mod tree;

use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "\
usage: webserver                                   serve HTTP, and UDP to be listed, on $PORT (80)
       webserver get IP:PORT PATH                  write what a web server answers
       webserver eat MIB                           touch so much memory, and say so
       webserver tree FOLDER                      what is in it, with all that an image can say of it
       webserver spoof INTERFACE SOURCE_MAC SOURCE_IP TARGET_MAC TARGET_IP PORT TEXT
                                                   send TEXT in five hand-made UDP frames";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] => http::serve(),
        ["get", address, path] => get::get(address, path),
        ["eat", mib] => eat(mib),
        ["tree", root] => tree::show(root),
        ["spoof", rest @ ..] => spoof::spoof(rest),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("webserver: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to every page of so many MiB, in steps of 16, and keeps them.
fn eat(mib: &str) -> Result<(), Box<dyn std::error::Error>> {
    const STEP_MIB: usize = 16;
    let wanted: usize = mib.parse()?;
    let mut eaten = Vec::new();
    for step in 1..=wanted.div_ceil(STEP_MIB) {
        eaten.push(vec![0xa5u8; STEP_MIB << 20]);
        println!("{} MiB", step * STEP_MIB);
        std::io::stdout().flush()?;
    }
    println!("done with {} pieces", eaten.len());
    Ok(())
}
