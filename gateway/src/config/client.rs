//! Where the command line finds a gateway: the same settings as the gateway's own, so that both sides of one machine
//! agree without being told.

use std::path::PathBuf;

use super::{ConfigError, default_dir};

/// The address of the control API.
pub const URL_VARIABLE: &str = "WINDROSE_CONTROL_URL";
/// The token itself.
pub const TOKEN_VARIABLE: &str = "WINDROSE_TOKEN";

/// The key of a tenant, for the data listener.
pub const KEY_VARIABLE: &str = "WINDROSE_KEY";

/// How to reach a gateway.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// For example `http://127.0.0.1:8001`, without a slash at the end.
    pub control: String,
    /// The token itself, where it was given.
    pub token: Option<String>,
    /// The file to read it from otherwise.
    pub token_file: PathBuf,
    /// The data listener, where it was named; else the gateway is asked.
    pub data: Option<String>,
    /// The key of the tenant who calls, where there is one.
    pub key: Option<String>,
}

impl ClientConfig {
    /// From flags, and the environment where they are silent.
    ///
    /// # Errors
    /// When there is no folder to look for the token in.
    pub fn load(
        control: Option<String>,
        token_file: Option<PathBuf>,
        environment: &[(String, String)],
    ) -> Result<ClientConfig, ConfigError> {
        let variable = |name: &str| {
            environment.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.clone())
        };
        let listen = variable("WINDROSE_CONTROL_LISTEN").unwrap_or_else(|| "127.0.0.1:8001".into());
        let control = control.or_else(|| variable(URL_VARIABLE)).unwrap_or_else(|| format!("http://{listen}"));
        if !control.starts_with("http://") {
            return Err(ConfigError(format!("`{control}` is no address such as http://127.0.0.1:8001")));
        }
        let token_file = match token_file {
            Some(file) => file,
            None => match variable("WINDROSE_STORAGE_DIR") {
                Some(dir) => PathBuf::from(dir),
                None => default_dir(environment)?,
            }
            .join("token"),
        };
        let data = variable("WINDROSE_DATA_LISTEN").map(|listen| format!("http://{listen}"));
        let control = control.trim_end_matches('/').to_string();
        let (token, key) = (variable(TOKEN_VARIABLE), variable(KEY_VARIABLE));
        Ok(ClientConfig { control, token, token_file, data, key })
    }
}
