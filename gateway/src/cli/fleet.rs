//! `windrose fleet`: an authority and certificates for a first fleet. Needs no gateway.

use std::path::PathBuf;

use super::Failure;
use crate::fleet::certificate::{self, CertificateError};

/// Make the certificates with which the sites of a fleet know each other.
#[derive(clap::Args)]
pub struct Fleet {
    #[command(subcommand)]
    command: FleetCommand,
}

#[derive(clap::Subcommand)]
enum FleetCommand {
    /// Make the authority that signs every site's certificate: authority.pem, which every site needs, and
    /// authority-key.pem, which belongs on no server.
    Init {
        /// The folder to make them in.
        folder: PathBuf,
    },
    /// Make a site's certificate and key, signed by the authority.
    Cert {
        /// The folder of the authority; the new files are put there too.
        folder: PathBuf,
        /// The site's name, as the fleet file has it, for example aws/eu-west-1.
        site: String,
        /// For how many days it is good.
        #[arg(long, default_value_t = 90, allow_negative_numbers = true)]
        days: i64,
    },
}

impl Fleet {
    /// Makes what was asked for.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is there already.
    pub fn run(self) -> Result<(), Failure> {
        let failed = |error: CertificateError| Failure::usage(error.to_string());
        match self.command {
            FleetCommand::Init { folder } => {
                let path = certificate::init(&folder).map_err(failed)?;
                println!("made {}; keep its key, authority-key.pem, off the servers", path.display());
            }
            FleetCommand::Cert { folder, site, days } => {
                let (certificate, key) = certificate::issue(&folder, &site, days).map_err(failed)?;
                println!("made {} and {}", certificate.display(), key.display());
            }
        }
        Ok(())
    }
}
