//! Checks the options of a presence system.

use std::time::Duration;

use super::{PresenceConfig, StartError};
#[cfg(feature = "postgres")]
use crate::store::SchemaName;
use crate::{bus::Bus, model::NodeName, store::DatabaseUrl};

impl PresenceConfig {
    /// Checks the options without touching the database, as [`start`](Self::start) does first.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is invalid.
    pub fn validate(&self) -> Result<(), StartError> {
        self.check()?;
        let database = self.database_url()?;
        self.check_schema(&database)?;
        self.bus(database.is_shared())?;
        self.node_name()?;
        Ok(())
    }

    /// Checks the options against each other, and returns the prune interval.
    pub(super) fn check(&self) -> Result<Duration, StartError> {
        let prune_every =
            self.prune_every.unwrap_or_else(|| (self.max_age / 4).min(Duration::from_secs(15)));
        for (option, value) in [
            ("max-age", self.max_age),
            ("prune interval", prune_every),
            ("room prune interval", self.prune_rooms_every),
            ("lease", self.lease),
            ("authorize timeout", self.authorize_timeout),
        ] {
            // A third or a quarter of it is a timer's interval.
            if value < Duration::from_millis(1) {
                return Err(StartError::Zero { option });
            }
        }
        if prune_every > self.max_age {
            let max_age = self.max_age;
            return Err(StartError::PrunedTooSeldom { prune_every, max_age });
        }
        Ok(prune_every)
    }

    pub(super) fn database_url(&self) -> Result<DatabaseUrl, StartError> {
        Ok(self.database.as_ref().ok_or(StartError::NoDatabase)?.parse()?)
    }

    /// Checks the schema, which only some databases have.
    pub(super) fn check_schema(&self, database: &DatabaseUrl) -> Result<(), StartError> {
        match database {
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(_) => self.schema_name().map(|_| ()),
            #[cfg(feature = "sqlite")]
            _ if self.schema.is_some() => Err(StartError::SchemaWithoutPostgres),
            #[cfg(feature = "sqlite")]
            _ => Ok(()),
        }
    }

    #[cfg(feature = "postgres")]
    pub(super) fn schema_name(&self) -> Result<Option<SchemaName>, StartError> {
        Ok(self.schema.as_ref().map(SchemaName::new).transpose()?)
    }

    pub(super) fn node_name(&self) -> Result<NodeName, StartError> {
        Ok(match &self.node {
            Some(name) => NodeName::new(name)?,
            None => NodeName::new(format!("node-{}", uuid::Uuid::new_v4().as_simple()))?,
        })
    }

    /// The bus to Redis, if the options name one; `shared` says whether nodes can share the database.
    pub(super) fn bus(&self, shared: bool) -> Result<Option<Box<dyn Bus>>, StartError> {
        let Some(url) = &self.redis else { return Ok(None) };
        if !shared {
            return Err(StartError::RedisWithoutSharedDatabase);
        }
        #[cfg(feature = "redis")]
        {
            let bus = crate::bus::RedisBus::new(url).map_err(|_| StartError::InvalidRedisUrl)?;
            Ok(Some(Box::new(bus)))
        }
        #[cfg(not(feature = "redis"))]
        {
            let _ = url;
            Err(StartError::RedisNotInThisBuild)
        }
    }
}
