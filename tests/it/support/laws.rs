//! What holds for every source in which the settings are found: asserted by the property tests and by the fuzz targets.

use lmpatch::patch::backend::{Edit, Goal, State, VendorFile};
use lmpatch::patch::original::{Evidence, Fingerprint, Proof, Receipt, Source};
use lmpatch::patch::settings::{Setting, Site};
use lmpatch::patch::sites::locate;
use serde_json::json;

/// Sets `size` and reverts, whatever proves the original, or nothing. A source in which nothing is found has nothing
/// to hold.
pub fn set_and_revert(setting: &'static Setting, source: &[u8], size: u64) {
    let Ok(sites) = locate(setting, source) else {
        return;
    };
    let after = set(&understand(setting, source, &Vec::new(), None), size);
    let after_sites = locate(setting, &after).unwrap();
    for site in &after_sites {
        assert_eq!(site.value, size, "every site has the new value");
    }
    only_digits_differ(source, &sites, &after, &after_sites);
    let again = understand(setting, &after, &Vec::new(), None);
    assert_eq!(set(&again, size), after, "set twice is set once");
    for proof in [None, Some(Proof::Record), Some(Proof::Release)] {
        let evidence = proof.map(|proof| (proof, Fingerprint::of(source)));
        comes_back(setting, source, size, &evidence.into_iter().collect());
    }
}

/// A revert gives the source back where a receipt was written wherever one is needed, and where there is none, or that
/// of another file, it gives no other bytes.
fn comes_back(setting: &'static Setting, source: &[u8], size: u64, evidence: &Evidence) {
    let before = understand(setting, source, evidence, None);
    let edit = plan(&before, size);
    let after = &edit.after.bytes;
    let receipt = Receipt::of(source, &before.source().unwrap().sites);
    let now = understand(setting, after, evidence, edit.receipt.as_ref());
    if edit.receipt.is_none() && !edit.drops_receipt {
        let mut planned = before.clone();
        planned.content = Ok(edit.after.clone());
        let (planned, read) = (json!(planned), json!(now));
        assert_eq!(planned, read, "what is reported is what is read again");
        let needs_receipt = now.source().unwrap().needs_receipt;
        assert_eq!(edit.after.needs_receipt, needs_receipt);
    }
    if edit.is_change() || !evidence.is_empty() {
        assert_eq!(revert(&now).unwrap(), source, "the very bytes come back");
    }
    let (mut resized, mut reworded) = (receipt.clone(), receipt);
    resized.fingerprint.size += 1;
    reworded.literals[0] += "0";
    for receipt in [None, Some(&resized), Some(&reworded)] {
        let now = understand(setting, after, evidence, receipt);
        match revert(&now) {
            Ok(bytes) if bytes == source => {}
            Ok(bytes) => {
                assert_eq!(&bytes, after, "what cannot be proven is left as it is");
                assert_eq!(now.state(), State::Stock);
            }
            Err(why) => assert!(why.contains("the original is unknown"), "{why}"),
        }
    }
}

/// The bytes for a chunk of `size`, which is no stock value.
pub fn set(file: &VendorFile, size: u64) -> Vec<u8> {
    plan(file, size).after.bytes.clone()
}

fn plan(file: &VendorFile, size: u64) -> Edit {
    let stock = size.wrapping_add(1);
    let source = file.source().unwrap();
    file.plan(source, Goal::Size(size), stock).unwrap()
}

/// The bytes of the original.
pub fn revert(file: &VendorFile) -> Result<Vec<u8>, String> {
    let edit = file.plan(file.source().unwrap(), Goal::Original, 0);
    edit.map(|edit| edit.after.bytes.clone())
}

/// A vendor file that reads `source`, as a survey understands it with this evidence and receipt.
pub fn understand(
    setting: &'static Setting,
    source: &[u8],
    evidence: &Evidence,
    receipt: Option<&Receipt>,
) -> VendorFile {
    let sites = locate(setting, source).unwrap();
    let receipt = if receipt.is_none_or(|receipt| receipt.fits(source, &sites)) {
        Ok(receipt.cloned())
    } else {
        Err("it belongs to another version".to_owned())
    };
    let source = Source::new(source.to_vec(), sites, receipt, evidence);
    VendorFile {
        setting,
        path: "/".into(),
        content: Ok(source.into()),
    }
}

fn only_digits_differ(before: &[u8], before_sites: &[Site], after: &[u8], after_sites: &[Site]) {
    assert_eq!(before_sites.len(), after_sites.len());
    let (mut kept, mut now) = (0, 0);
    for (old, new) in before_sites.iter().zip(after_sites) {
        let (between, still) = (&before[kept..old.range.start], &after[now..new.range.start]);
        assert_eq!(between, still, "only digits of sites differ");
        assert_eq!((old.name, old.line), (new.name, new.line));
        assert_eq!(old.owner, new.owner);
        if old.value == new.value {
            let (written, still) = (&before[old.range.clone()], &after[new.range.clone()]);
            assert_eq!(written, still, "what is right is left as it is written");
        }
        (kept, now) = (old.range.end, new.range.end);
    }
    assert_eq!(before[kept..], after[now..], "only digits of sites differ");
}
