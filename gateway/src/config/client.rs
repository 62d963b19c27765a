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
    /// The data listener, where the environment has the settings of this gateway; else the gateway is asked.
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
        let named = control.or_else(|| variable(URL_VARIABLE));
        // A gateway that was named is not the one whose settings are in the environment.
        let data =
            variable("WINDROSE_DATA_LISTEN").filter(|_| named.is_none()).map(|listen| format!("http://{listen}"));
        let control = named.unwrap_or_else(|| format!("http://{listen}"));
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
        let control = control.trim_end_matches('/').to_string();
        let (token, key) = (variable(TOKEN_VARIABLE), variable(KEY_VARIABLE));
        Ok(ClientConfig { control, token, token_file, data, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_is_named_says_itself_where_its_data_listener_is() {
        let environment = |more: &[(&str, &str)]| -> Vec<(String, String)> {
            let all = [("HOME", "/nowhere"), ("WINDROSE_DATA_LISTEN", "127.0.0.1:7000")];
            all.iter().chain(more).map(|(key, value)| (key.to_string(), value.to_string())).collect()
        };
        let load = |control: Option<&str>, more: &[(&str, &str)]| {
            ClientConfig::load(control.map(str::to_string), None, &environment(more)).unwrap()
        };
        assert_eq!(load(None, &[]).data.as_deref(), Some("http://127.0.0.1:7000"));
        assert_eq!(
            load(None, &[("WINDROSE_CONTROL_LISTEN", "10.0.0.1:1")]).data.as_deref(),
            Some("http://127.0.0.1:7000")
        );
        for named in [load(Some("http://gate:8001/"), &[]), load(None, &[(URL_VARIABLE, "http://gate:8001")])] {
            assert_eq!((named.control.as_str(), named.data), ("http://gate:8001", None));
        }
    }
}
