//! Statements made before the load begins, so that it measures the server and not their making.

use tokio::sync::mpsc;

/// Pieces of one statement, in order.
pub(crate) type Pieces<T> = mpsc::Receiver<T>;

/// Takes all statements in, and gives them again without anything left to wait for.
pub(crate) async fn take_ahead<T, E>(
    mut statements: mpsc::Receiver<Result<Pieces<T>, E>>,
) -> Result<mpsc::Receiver<Result<Pieces<T>, E>>, E> {
    let mut taken = Vec::new();
    while let Some(statement) = statements.recv().await {
        let (mut statement, mut pieces) = (statement?, Vec::new());
        while let Some(piece) = statement.recv().await {
            pieces.push(piece);
        }
        taken.push(filled(pieces));
    }
    Ok(filled(taken.into_iter().map(Ok).collect()))
}

/// A closed channel that holds these.
fn filled<T>(items: Vec<T>) -> mpsc::Receiver<T> {
    let (give, take) = mpsc::channel(items.len().max(1));
    for item in items {
        // There is room for all, and the reader is here.
        let given = give.try_send(item);
        debug_assert!(given.is_ok(), "the channel has room");
    }
    take
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_pieces_come_in_order() {
        let (give, statements) = mpsc::channel(1);
        tokio::spawn(async move {
            for start in [0, 10] {
                let (pieces, statement) = mpsc::channel(1);
                give.send(Ok::<_, ()>(statement)).await.expect("it is read");
                for piece in start..start + 3 {
                    pieces.send(piece).await.expect("it is read");
                }
            }
        });
        let mut ahead = take_ahead(statements).await.expect("no statement failed");
        let mut all = Vec::new();
        while let Some(Ok(mut statement)) = ahead.recv().await {
            while let Some(piece) = statement.recv().await {
                all.push(piece);
            }
        }
        assert_eq!(all, [0, 1, 2, 10, 11, 12]);
    }

    #[tokio::test]
    async fn the_first_error_is_told() {
        let statements = filled(vec![Ok(filled(vec![1])), Err("torn")]);
        assert_eq!(take_ahead(statements).await.err(), Some("torn"));
    }
}
