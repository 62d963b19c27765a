//! Who makes a control call: the operator, or a deployer with a key of its own, to whom some models belong.

use std::sync::Arc;

use windrose_engine::Isolation;

use super::registry::ChangeError;
use crate::config::deployers::{Deployer, OPERATOR};

/// Who makes a control call.
#[derive(Clone, Debug)]
pub enum Who {
    /// Whoever has the gateway's own token.
    Operator,
    /// Whoever has a key of this one.
    Deployer(Arc<Deployer>),
}

/// How far a version is trusted, which depends on who deployed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The least isolation of its graphs.
    pub isolation: Isolation,
    /// Whether it may be granted anything.
    pub grants: bool,
}

impl Trust {
    /// What the operator deployed.
    pub const FULL: Trust = Trust { isolation: Isolation::Process, grants: true };
    /// What somebody deployed of whom the file of deployers says nothing any more.
    pub const LEAST: Trust = Trust { isolation: Isolation::Child, grants: false };

    /// What this deployer deployed.
    pub fn of(deployer: &Deployer) -> Trust {
        Trust { isolation: deployer.isolation, grants: deployer.grants }
    }
}

impl Who {
    /// As the log names it.
    pub fn name(&self) -> &str {
        self.uploader().unwrap_or(OPERATOR)
    }

    /// The deployer, which may name only files that it uploaded itself: whoever knows a file's digest, which answers to
    /// clients show, is not to have the file. The operator may name any.
    pub fn uploader(&self) -> Option<&str> {
        match self {
            Who::Operator => None,
            Who::Deployer(deployer) => Some(&deployer.name),
        }
    }

    /// How far what it deploys is trusted.
    pub fn trust(&self) -> Trust {
        match self {
            Who::Operator => Trust::FULL,
            Who::Deployer(deployer) => Trust::of(deployer),
        }
    }

    /// Whether a model of this name is its own.
    pub fn owns(&self, model: &str) -> bool {
        match self {
            Who::Operator => true,
            Who::Deployer(deployer) => deployer.owns(model),
        }
    }

    /// Refuses what is not its own.
    ///
    /// # Errors
    /// [`ChangeError::Forbidden`], saying which models are.
    pub fn may(&self, model: &str) -> Result<(), ChangeError> {
        match self {
            Who::Deployer(deployer) if !deployer.owns(model) => {
                let own: Vec<String> = deployer.models.iter().map(ToString::to_string).collect();
                let (name, own) = (&deployer.name, own.join(", "));
                Err(ChangeError::Forbidden(format!("model `{model}` is not one of deployer `{name}`: {own}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is only the operator's.
    ///
    /// # Errors
    /// [`ChangeError::Forbidden`].
    pub fn may_all(&self) -> Result<(), ChangeError> {
        match self {
            Who::Operator => Ok(()),
            Who::Deployer(_) => Err(ChangeError::Forbidden("this is for the operator's token only".into())),
        }
    }
}
