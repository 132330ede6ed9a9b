//! Rows by the chunk, and what becomes of those that the database refuses.

use diesel::Connection;

use super::{error::Failure, transact::transact};

/// Writes rows chunk by chunk, each in a savepoint; a chunk that fails for a row is halved until that
/// row is alone.
///
/// So one bad row costs a few statements more, not a statement for each good one.
pub(super) fn each_chunk<C: Connection, T>(
    conn: &mut C,
    rows: &[T],
    chunk: usize,
    write: impl Fn(&mut C, &[T]) -> Result<(), Failure>,
    mut set_aside: impl FnMut(&T, String),
) -> Result<(), Failure> {
    let mut todo: Vec<&[T]> = rows.chunks(chunk).rev().collect();
    while let Some(chunk) = todo.pop() {
        match (transact(conn, |conn| write(conn, chunk)), chunk) {
            (Ok(()), _) => {}
            (Err(Failure::Row(reason)), [row]) => set_aside(row, reason),
            (Err(Failure::Row(_)), _) => {
                let (first, second) = chunk.split_at(chunk.len() / 2);
                todo.extend([second, first]);
            }
            (Err(failure), _) => return Err(failure),
        }
    }
    Ok(())
}
