//! The journal, where there is one: developers' detail with the job's id on every line.

use tracing_subscriber::layer::SubscriberExt as _;

/// Sends `tracing` events to journald. Silent where no journal listens.
pub fn start() {
    if let Ok(layer) = tracing_journald::layer() {
        // Fields go by their own names: `MESSAGE_ID` and `JOB_ID` are what people search for.
        let layer = layer.with_syslog_identifier("onesdm".to_owned()).with_field_prefix(None);
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
    }
}
