//! The way from other threads to what a service has counted: a bounded queue of questions, and an answer within a deadline or none.
//! A question costs the service one copy of its counters; whoever asks too often is not answered.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use block_device::BlockDevice;
use gateway_nfs::service::Service;
use gateway_nfs::statistics::report::Report;
use proto::VolumeId;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for a service; more are not answered.
const QUESTIONS_QUEUED_MAX: usize = 16;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Somebody wants to know.
pub struct Question(oneshot::Sender<Report>);

/// The services that began on this node last, one a volume.
#[derive(Debug, Default)]
pub struct Reports {
    services: Mutex<BTreeMap<VolumeId, mpsc::Sender<Question>>>,
}

impl Reports {
    /// What the volume's service that begins is to take questions from; a former one is not asked any more.
    pub fn open(&self, volume: VolumeId) -> mpsc::Receiver<Question> {
        let (sender, questions) = mpsc::channel(QUESTIONS_QUEUED_MAX);
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.retain(|_, sender| !sender.is_closed());
        services.insert(volume, sender);
        questions
    }

    /// What the volume's service has counted; none if it does not run here, or does not answer in time.
    pub async fn ask(&self, volume: VolumeId) -> Option<Report> {
        let sender = self.services.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned()?;
        let (answer, answered) = oneshot::channel();
        sender.try_send(Question(answer)).ok()?;
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
    }
}

/// Answers questions about a service, on its thread, until this is dropped.
pub(super) async fn answer<D: BlockDevice + 'static>(
    service: Rc<Service<D>>,
    mut questions: mpsc::Receiver<Question>,
) -> Infallible {
    while let Some(Question(answer)) = questions.recv().await {
        // Whoever asked may have given up.
        let _ = answer.send(service.report());
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    const VOLUME: VolumeId = VolumeId(7);

    #[tokio::test]
    async fn a_service_that_does_not_answer_holds_nobody_up_and_takes_no_more_questions() {
        let reports = Reports::default();
        assert!(reports.ask(VOLUME).await.is_none(), "there is none");
        let questions = reports.open(VOLUME);
        let asked = join_all((0..QUESTIONS_QUEUED_MAX).map(|_| reports.ask(VOLUME))).await;
        assert!(asked.iter().all(Option::is_none), "nobody answers");
        assert!(matches!(reports.ask(VOLUME).now_or_never(), Some(None)), "the queue is full: refused at once");
        drop(questions);
        assert!(reports.ask(VOLUME).await.is_none());
    }

    #[test]
    fn services_that_have_ended_are_forgotten() {
        let reports = Reports::default();
        for volume in 0..100 {
            drop(reports.open(VolumeId(volume)));
        }
        let _last = reports.open(VOLUME);
        assert_eq!(reports.services.lock().unwrap().len(), 1);
    }
}
