//! The stores of a database, and starting their threads.

use std::{io, time::Duration};

use crate::{
    clock::Clock,
    mirror::{Writer, WriterHandle},
    model::NodeName,
    registry::ClockOffset,
    store::{
        SharedStore, Started, Store, StoreError,
        lane::HungCalls,
        reader::{Reader, ReaderHandle},
    },
    supervision::Supervisor,
};

/// The stores of a database.
pub(super) enum Stores {
    /// One that is for this process alone.
    Alone(Box<dyn Store>),
    /// Two that share it with each other and with other nodes.
    Shared { writer: Box<dyn SharedStore>, reader: Box<dyn SharedStore> },
}

impl Stores {
    /// Has the writer's store started, unless the database stops answering. A clock is corrected before, by
    /// that of a shared database.
    pub(super) fn start(
        self,
        node: NodeName,
        clock: Clock,
        lease: Duration,
    ) -> Result<(Started, Self), StoreError> {
        match self {
            Self::Alone(mut writer) => {
                let started = writer.start(&node, clock.now().utc(), lease)?;
                Ok((started, Self::Alone(writer)))
            }
            Self::Shared { mut writer, mut reader } => {
                let measured = clock.clone();
                let reader = reader.pulse().watch(move || {
                    ClockOffset::correct_first(&measured, &mut *reader);
                    Ok(reader)
                })?;
                let (started, writer) = writer
                    .pulse()
                    .watch(move || Ok((writer.start(&node, clock.now().utc(), lease)?, writer)))?;
                Ok((started, Self::Shared { writer, reader }))
            }
        }
    }

    /// Starts a thread for each store, and one more for what may take long.
    pub(super) fn start_threads(
        self,
        node: &NodeName,
        lease: Duration,
        supervisor: &Supervisor,
    ) -> io::Result<(WriterHandle, Option<[ReaderHandle; 2]>)> {
        let node = node.clone();
        let (writer, reader) = match self {
            Self::Alone(writer) => {
                return Ok((Writer::start_alone(writer, node, lease, supervisor)?, None));
            }
            Self::Shared { writer, reader } => (writer, reader),
        };
        let hung = HungCalls::default();
        let further = reader.opener().map(|open| open());
        let reader = Reader::start(reader, hung.clone(), supervisor)?;
        let background = match further {
            Some(store) => Reader::start(store, hung.clone(), supervisor)?,
            None => reader.clone(),
        };
        let writer = Writer::start_shared(writer, node, lease, hung, supervisor)?;
        Ok((writer, Some([reader, background])))
    }
}
