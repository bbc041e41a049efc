//! Cold segments. Only what a checkpoint points to counts in them; beside it a crash may leave what was half copied or half
//! overwritten.

use std::collections::BTreeSet;

use super::Report;
use crate::finding::{Finding, Place, Reason};
use crate::rot::{Loss, Rot};
use crate::{Checked, Location, RecordHeader, RecordKind};

impl Report {
    /// Judges a cold segment that was checked alone by what the newest checkpoint waits for there: partition and place of each.
    /// What is lost of that is damage, however it lies. Where nothing is, findings that a crash explains are taken back: then
    /// they are one note.
    pub fn judge_cold(&mut self, checked: &Checked, waited: &[(u16, Location)]) -> Option<String> {
        let lost: Vec<&(u16, Location)> = waited.iter().filter(|(_, place)| checked.lost(*place).is_some()).collect();
        if let Some(first) = lost.iter().map(|(_, place)| place.offset).min() {
            let mut finding =
                Finding::new(Place::Segment(checked.segment, first), Reason::WaitedFor(lost.len() as u64));
            finding.partitions.extend(lost.iter().map(|(partition, _)| *partition).collect::<BTreeSet<u16>>());
            self.findings.push(finding);
            return None;
        }
        let here = |finding: &Finding| matches!(finding.place, Place::Segment(id, _) if id == checked.segment);
        let torn = self.findings.iter().find_map(|finding| match (&finding.reason, finding.place) {
            (Reason::Torn(_), Place::Segment(id, offset)) if id == checked.segment => Some(offset),
            _ => None,
        });
        let explained = |rot: &Rot| {
            let moved = matches!(rot.loss, Loss::Record(RecordHeader { kind: RecordKind::Moved, .. }));
            moved || torn.is_some_and(|torn| rot.offset >= torn)
        };
        if !checked.rot.iter().all(explained) {
            return None;
        }
        let before = self.findings.len();
        self.findings.retain(|it| !(here(it) && matches!(it.reason, Reason::Batch { .. } | Reason::Torn(_))));
        (self.findings.len() < before).then(|| {
            format!(
                "{}: bytes that nobody waits for are not as they were written: a crash leaves that where something was being \
                 copied or overwritten",
                Place::Segment(checked.segment, checked.rot.first().map_or(0, |rot| rot.offset))
            )
        })
    }
}
