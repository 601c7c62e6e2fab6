//! What holds for every source in which the settings are found: asserted by the property tests and by the fuzz targets.

use lmpatch::patch::backend::Goal;
use lmpatch::patch::file::{Edit, Source, VendorFile};
use lmpatch::patch::original::{Evidence, Fingerprint, Proof, Receipt};
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
    assert!(
        after_sites.iter().all(|site| site.value == size),
        "every site has the new value"
    );
    only_digits_differ(source, &sites, &after, &after_sites);
    let again = understand(setting, &after, &Vec::new(), None);
    assert_eq!(set(&again, size), after, "set twice is set once");
    for evidence in [
        Vec::new(),
        vec![(Proof::Record, Fingerprint::of(source))],
        vec![(Proof::Release, Fingerprint::of(source))],
    ] {
        comes_back(setting, source, size, &evidence);
    }
}

/// A revert gives the source back where a receipt was written wherever one is needed, and where there is none it gives
/// no other bytes.
fn comes_back(setting: &'static Setting, source: &[u8], size: u64, evidence: &Evidence) {
    let before = understand(setting, source, evidence, None);
    let edit = plan(&before, size);
    let receipt = Receipt::of(source, &before.source().unwrap().sites);
    let now = understand(setting, &edit.after.bytes, evidence, edit.receipt.as_ref());
    if edit.receipt.is_none() && !edit.drops_receipt {
        let (planned, read) = (json!(edited(&before, &edit)), json!(now));
        assert_eq!(planned, read, "what is reported is what is read again");
        assert_eq!(
            edit.after.needs_receipt,
            now.source().unwrap().needs_receipt
        );
    }
    if edit.is_change() || !evidence.is_empty() {
        assert_eq!(revert(&now).unwrap(), source, "the very bytes come back");
    }
    is_never_guessed(setting, source, &edit.after.bytes, evidence, None);
    let mut foreign = receipt.clone();
    foreign.fingerprint.size += 1;
    is_never_guessed(setting, source, &edit.after.bytes, evidence, Some(&foreign));
    foreign = receipt;
    foreign.literals[0] += "0";
    is_never_guessed(setting, source, &edit.after.bytes, evidence, Some(&foreign));
}

fn edited(before: &VendorFile, edit: &Edit) -> VendorFile {
    VendorFile {
        content: Ok(edit.after.clone()),
        ..before.clone()
    }
}

fn is_never_guessed(
    setting: &'static Setting,
    source: &[u8],
    after: &[u8],
    evidence: &Evidence,
    receipt: Option<&Receipt>,
) {
    let now = understand(setting, after, evidence, receipt);
    match revert(&now) {
        Ok(bytes) if bytes == source => {}
        Ok(bytes) => assert!(
            bytes == after && now.source().unwrap().is_stock(),
            "what cannot be proven is left as it is"
        ),
        Err(why) => assert!(why.contains("the original is unknown"), "{why}"),
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
    let receipt = match receipt {
        Some(receipt) if !receipt.fits(source, &sites) => {
            Err("it belongs to another version".to_owned())
        }
        receipt => Ok(receipt.cloned()),
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
        assert_eq!(
            before[kept..old.range.start],
            after[now..new.range.start],
            "only digits of sites differ"
        );
        assert_eq!(
            (old.name, &old.owner, old.line),
            (new.name, &new.owner, new.line)
        );
        if old.value == new.value {
            assert_eq!(
                before[old.range.clone()],
                after[new.range.clone()],
                "what is right is left as it is written"
            );
        }
        (kept, now) = (old.range.end, new.range.end);
    }
    assert_eq!(before[kept..], after[now..], "only digits of sites differ");
}
