//! `windrose fleet`: an authority and certificates for a first fleet. Needs no gateway.

use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use crate::config::units::parse_span;
use crate::fleet::certificate::{self, CertificateError, DAY};

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
        /// Or for how long, such as 12h, where certificates are made anew all the time.
        #[arg(long, value_name = "SPAN", value_parser = parse_span, conflicts_with = "days")]
        lifetime: Option<Duration>,
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
            FleetCommand::Cert { folder, site, days, lifetime } => {
                let seconds = lifetime.map(|span| i64::try_from(span.as_secs()).unwrap_or(i64::MAX));
                let seconds = seconds.unwrap_or(days.saturating_mul(DAY));
                let (certificate, key) = certificate::issue(&folder, &site, seconds).map_err(failed)?;
                println!("made {} and {}", certificate.display(), key.display());
            }
        }
        Ok(())
    }
}
