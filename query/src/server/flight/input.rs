//! Record batches that a client sends: checked message by message, then decoded with full validation.
//!
//! arrow's reader believes where a message says its buffers are, and panics when they are not there. What is known of
//! that is checked before; what is not known yet ends in an error of the call all the same.

use std::{panic::AssertUnwindSafe, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
    ipc::{self, MessageHeader},
};
use arrow_flight::{
    FlightData,
    decode::{DecodedPayload, FlightDataDecoder},
    error::FlightError,
};
use datafusion::{
    error::DataFusionError, execution::SendableRecordBatchStream,
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use tonic::Status;

use crate::{Error, SqlState};

/// Most rows of a batch: columns of type null claim any number in no bytes.
const ROWS_MAX: i64 = 16 << 20;
/// Most columns of a batch.
const COLUMNS_MAX: usize = hypertide_proto::schema::COLUMNS_MAX;

/// SQLSTATE of messages that break the protocol.
const PROTOCOL_VIOLATION: SqlState = SqlState("08P01");

/// The schema that a client sends first, or `None` when it sends nothing, and the batches that follow.
pub(super) async fn batches(
    messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
) -> Result<Option<SendableRecordBatchStream>, Error> {
    let checked = messages.map(|message| {
        let message = message.map_err(|status| FlightError::Tonic(Box::new(status)))?;
        check(&message).map_err(|error| FlightError::ExternalError(Box::new(error)))?;
        Ok(message)
    });
    // Commands without batches come with an empty header.
    let checked = checked.try_filter(|message| {
        let holds = !message.data_header.is_empty();
        async move { holds }
    });
    let mut decoder = FlightDataDecoder::new(checked);
    let schema = loop {
        match next(&mut decoder).await? {
            None => return Ok(None),
            Some(DecodedPayload::Schema(schema)) => break schema,
            Some(DecodedPayload::None) => {}
            Some(DecodedPayload::RecordBatch(_)) => {
                return Err(Error::new(PROTOCOL_VIOLATION, "a batch came before its schema"));
            }
        }
    };
    if schema.fields().len() > COLUMNS_MAX {
        let message = format!("a batch can have at most {COLUMNS_MAX} columns");
        return Err(Error::new(SqlState("54011"), message));
    }
    let rest = stream::try_unfold((decoder, Arc::clone(&schema)), next_batch);
    Ok(Some(Box::pin(RecordBatchStreamAdapter::new(schema, rest))))
}

type State = (FlightDataDecoder, SchemaRef);

async fn next_batch(
    (mut decoder, schema): State,
) -> Result<Option<(RecordBatch, State)>, DataFusionError> {
    loop {
        let decoded = next(&mut decoder).await;
        match decoded.map_err(|error| DataFusionError::External(Box::new(error)))? {
            None => return Ok(None),
            Some(DecodedPayload::RecordBatch(batch)) => {
                return Ok(Some((batch, (decoder, schema))));
            }
            Some(DecodedPayload::Schema(other)) if other != schema => {
                let error = Error::new(PROTOCOL_VIOLATION, "the schema changed between batches");
                return Err(DataFusionError::External(Box::new(error)));
            }
            Some(DecodedPayload::Schema(_) | DecodedPayload::None) => {}
        }
    }
}

/// Refuses messages whose claims the decoder would believe.
fn check(message: &FlightData) -> Result<(), Error> {
    if message.data_header.is_empty() {
        return Ok(());
    }
    let header = ipc::root_as_message(&message.data_header).map_err(|error| {
        Error::new(PROTOCOL_VIOLATION, format!("malformed Arrow message: {error}"))
    })?;
    let batch = match header.header_type() {
        MessageHeader::RecordBatch => header.header_as_record_batch(),
        MessageHeader::DictionaryBatch => {
            header.header_as_dictionary_batch().and_then(|dictionary| dictionary.data())
        }
        _ => return Ok(()),
    };
    let batch = batch.ok_or_else(|| Error::new(PROTOCOL_VIOLATION, "malformed Arrow batch"))?;
    if batch.compression().is_some() {
        let message = "compressed record batches are not accepted";
        return Err(Error::new(SqlState("0A000"), message));
    }
    check_rows(batch.length())?;
    for node in batch.nodes().into_iter().flatten() {
        check_rows(node.length())?;
        check_rows(node.null_count())?;
    }
    let body = message.data_body.len();
    let inside = |buffer: &ipc::Buffer| {
        let place =
            usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let end = place.and_then(|(offset, length)| offset.checked_add(length));
        end.is_some_and(|end| end <= body)
    };
    match batch.buffers().into_iter().flatten().all(inside) {
        true => Ok(()),
        false => Err(Error::new(PROTOCOL_VIOLATION, "an Arrow batch is shorter than it says")),
    }
}

fn check_rows(rows: i64) -> Result<(), Error> {
    if (0..=ROWS_MAX).contains(&rows) {
        return Ok(());
    }
    let message = format!("a batch of {rows} rows exceeds the limit of {ROWS_MAX}");
    Err(Error::new(SqlState("54000"), message))
}

/// The next message of a decoder, which may panic on what no check foresaw.
async fn next(decoder: &mut FlightDataDecoder) -> Result<Option<DecodedPayload>, Error> {
    match AssertUnwindSafe(decoder.next()).catch_unwind().await {
        Ok(decoded) => decoded.transpose().map(|one| one.map(|one| one.payload)).map_err(refused),
        Err(_) => Err(Error::new(PROTOCOL_VIOLATION, "malformed Arrow data")),
    }
}

/// The error of a client's stream.
fn refused(error: FlightError) -> Error {
    match error {
        FlightError::ExternalError(error) => match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(other) => Error::new(PROTOCOL_VIOLATION, other),
        },
        FlightError::Tonic(status) => Error::new(
            SqlState("57014"),
            format!("the client's stream ended early: {}", status.message()),
        ),
        other => Error::new(PROTOCOL_VIOLATION, format!("malformed Arrow data: {other}")),
    }
}

/// The type of a column as a table can have it.
pub(super) fn plain_type(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, value) => value,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Int32Array, NullArray},
        datatypes::{Field, Schema},
        ipc::writer::IpcWriteOptions,
    };
    use arrow_flight::{SchemaAsIpc, encode::FlightDataEncoderBuilder};

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int32, true)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int32Array::from(vec![1, 2, 3]))]).unwrap()
    }

    async fn messages(batches: Vec<RecordBatch>) -> Vec<FlightData> {
        let batches = stream::iter(batches.into_iter().map(Ok));
        FlightDataEncoderBuilder::new().build(batches).try_collect().await.unwrap()
    }

    async fn decode(messages: Vec<FlightData>) -> Result<Vec<RecordBatch>, Error> {
        let decoded = batches(stream::iter(messages.into_iter().map(Ok))).await?;
        let Some(decoded) = decoded else { return Ok(Vec::new()) };
        decoded.try_collect().await.map_err(|error| match error {
            DataFusionError::External(error) => *error.downcast::<Error>().unwrap(),
            other => panic!("{other}"),
        })
    }

    #[tokio::test]
    async fn batches_come_through() {
        let sent = messages(vec![batch(), batch()]).await;
        assert_eq!(decode(sent).await.unwrap(), [batch(), batch()]);
        assert_eq!(decode(Vec::new()).await.unwrap(), []);
        assert_eq!(decode(vec![FlightData::new()]).await.unwrap(), []);
    }

    #[tokio::test]
    async fn broken_messages_are_refused() {
        let sent = messages(vec![batch()]).await;
        let error = decode(sent[1..].to_vec()).await.unwrap_err();
        assert_eq!(error.state, PROTOCOL_VIOLATION);
        let garbage = FlightData::new().with_data_header(vec![7; 40]);
        assert_eq!(decode(vec![garbage]).await.unwrap_err().state, PROTOCOL_VIOLATION);
        for cut in 0..sent[1].data_body.len() {
            let mut short = sent.clone();
            short[1].data_body.truncate(cut);
            // Only padding may be missing.
            assert!(decode(short).await.is_err() || cut >= 12, "body cut at {cut}");
        }
        for at in 0..sent[1].data_header.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut header = sent[1].data_header.to_vec();
                header[at] ^= flip;
                let mut broken = sent.clone();
                broken[1].data_header = header.into();
                // Some flips do not matter; none may panic.
                let _ = decode(broken).await;
            }
        }
    }

    #[tokio::test]
    async fn claims_of_rows_without_bytes_are_refused() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Null, true)]));
        let rows = usize::try_from(ROWS_MAX).unwrap() + 1;
        let huge = RecordBatch::try_new(schema, vec![Arc::new(NullArray::new(rows))]).unwrap();
        let error = decode(messages(vec![huge]).await).await.unwrap_err();
        assert_eq!(error.state, SqlState("54000"));
    }

    #[tokio::test]
    async fn another_schema_in_the_midst_is_refused() {
        let mut sent = messages(vec![batch()]).await;
        let other = Schema::new(vec![Field::new("y", DataType::Utf8, true)]);
        let options = IpcWriteOptions::default();
        sent.push(SchemaAsIpc::new(&other, &options).into());
        assert_eq!(decode(sent).await.unwrap_err().state, PROTOCOL_VIOLATION);
    }
}
