//! Turns the vocabulary into a hash table that lies ready in the module's memory: a fresh sandbox builds nothing.

use std::path::PathBuf;
use std::{env, error, fs};

include!("src/hash.rs");

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=vocab.txt");
    println!("cargo::rerun-if-changed=src/hash.rs");
    let text = fs::read_to_string("vocab.txt")?;
    let tokens: Vec<&str> = text.lines().collect();
    let mut slots = vec![EMPTY; SLOTS];
    for (id, token) in tokens.iter().enumerate() {
        let mut slot = slot(token.bytes().fold(SEED, mix));
        while slots[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        slots[slot] = u16::try_from(id)?;
    }
    let mut offsets = vec![0u32];
    for token in &tokens {
        offsets.push(offsets[offsets.len() - 1] + u32::try_from(token.len())?);
    }
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(folder.join("slots.bin"), slots.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())?;
    fs::write(folder.join("offsets.bin"), offsets.iter().flat_map(|at| at.to_le_bytes()).collect::<Vec<u8>>())?;
    fs::write(folder.join("tokens.bin"), tokens.concat())?;
    Ok(())
}
