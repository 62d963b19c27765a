//! The token of the control API: made at first start, readable by its owner only, compared in constant time.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::folder;
use super::store::hex;

/// The token, as the digest that calls are compared with.
pub struct Token([u8; 32]);

impl Token {
    /// Reads the token's file, or makes it with a new random token.
    ///
    /// # Errors
    /// When others can read the file, or it cannot be made or read.
    pub fn open(path: &Path) -> io::Result<Token> {
        let text = match create(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path)?,
            Err(error) => return Err(error),
        };
        Ok(Token(Sha256::digest(text.as_bytes()).into()))
    }

    /// Whether this is the token. Takes the same time whatever differs: digests are compared, and all of them.
    pub fn is(&self, candidate: &str) -> bool {
        let candidate: [u8; 32] = Sha256::digest(candidate.as_bytes()).into();
        let differing = self.0.iter().zip(candidate).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        differing == 0
    }
}

fn create(path: &Path) -> io::Result<String> {
    let text = hex(&rand::random::<[u8; 32]>());
    // Written beside its place and then linked there: a file of this name is always whole, and never replaced.
    let unfinished = path.with_extension("new");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&unfinished, path);
    std::fs::remove_file(&unfinished)?;
    linked?;
    folder::sync(path.parent())?;
    Ok(text)
}

/// The token in a file, for the server and for the command line.
///
/// # Errors
/// When others can read the file, or it is not there.
pub fn read(path: &Path) -> io::Result<String> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        let message = format!("{} can be read by others: chmod 600 it, or delete it for a new token", path.display());
        return Err(io::Error::other(message));
    }
    let text = std::fs::read_to_string(path)?.trim().to_string();
    if text.len() < 32 {
        return Err(io::Error::other(format!("{} holds no token of at least 32 characters", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = Token::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = read(&path).unwrap();
        assert!(token.is(&text) && Token::open(&path).unwrap().is(&text));
        assert!(!token.is("") && !token.is(&text[1..]) && !token.is(&format!("{text}0")));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Token::open(&path).is_err());
    }
}
