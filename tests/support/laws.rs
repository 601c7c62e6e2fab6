//! What holds for every source in which the settings are found: asserted by the property tests and by the fuzz targets.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use lmpatch::patch::original::{Evidence, Fingerprint, Proof, SavedCopy, identify, sha256_hex};
use lmpatch::patch::plan::{Content, Goal, NotPlanned, plan};
use lmpatch::patch::settings::Setting;
use lmpatch::patch::sites::{Site, locate};

/// Sets `size` and reverts, with a saved copy and without. A source in which nothing is found has nothing to hold.
pub fn set_and_revert(setting: &Setting, source: &[u8], size: u64) {
    let Ok(sites) = locate(setting, source) else {
        return;
    };
    let content = understand(setting, source, &Evidence::default());
    let after = plan(setting, &content, Goal::Size(size), None).unwrap();
    let after_sites = locate(setting, &after).unwrap();
    assert!(
        after_sites.iter().all(|site| site.value == size),
        "every site has the new value"
    );
    only_digits_differ(source, &sites, &after, &after_sites);
    assert_eq!(set(setting, &after, size), after, "set twice is set once");
    let saved = Evidence {
        saved: vec![saved_copy(source)],
        ..Evidence::default()
    };
    let with_copy = understand(setting, &after, &saved);
    assert_eq!(
        plan(setting, &with_copy, Goal::Vendor, None).unwrap(),
        source,
        "a saved copy is given back"
    );
    revert_without_copy(setting, &content, &after, size);
}

fn revert_without_copy(setting: &Setting, content: &Content, after: &[u8], size: u64) {
    let source = &content.bytes;
    let listed = Evidence {
        record: vec![fingerprint(source)],
        ..Evidence::default()
    };
    let bare = understand(setting, after, &Evidence::default());
    let proven = understand(setting, after, &listed);
    let reverted = plan(setting, &proven, Goal::Vendor, None);
    if after == source || is_plain_stock(content, size) {
        assert_eq!(
            &reverted.unwrap(),
            source,
            "what RECORD proves is given back without a copy"
        );
    } else {
        assert!(
            matches!(reverted, Err(NotPlanned::OriginalUnknown { .. })),
            "the vendor's bytes are never guessed"
        );
    }
    if bare.original.proof == Proof::Unknown && !bare.has_stock_values() {
        assert!(matches!(
            plan(setting, &bare, Goal::Vendor, None),
            Err(NotPlanned::OriginalUnknown { .. })
        ));
    }
}

/// Whether putting the stock values back after `size` was set gives the same bytes: every literal that was replaced
/// was the stock value in plain decimal.
fn is_plain_stock(content: &Content, size: u64) -> bool {
    let is_plain =
        |site: &Site| content.bytes[site.range.clone()] == *site.value.to_string().as_bytes();
    content.has_stock_values()
        && content
            .sites
            .iter()
            .all(|site| site.value == size || is_plain(site))
}

fn set(setting: &Setting, source: &[u8], size: u64) -> Vec<u8> {
    plan(
        setting,
        &understand(setting, source, &Evidence::default()),
        Goal::Size(size),
        None,
    )
    .unwrap()
}

/// What is known of a source.
pub fn understand(setting: &Setting, source: &[u8], evidence: &Evidence) -> Content {
    let sites = locate(setting, source).unwrap();
    let original = identify(setting, source, &sites, evidence);
    Content {
        bytes: source.to_vec(),
        sites,
        original,
    }
}

fn saved_copy(source: &[u8]) -> SavedCopy {
    SavedCopy {
        bytes: source.to_vec(),
        named_sha256: sha256_hex(source),
    }
}

/// What `RECORD` would say of these bytes.
pub fn fingerprint(source: &[u8]) -> Fingerprint {
    let hex = sha256_hex(source).into_bytes();
    let digit = |index: usize| u8::try_from(char::from(hex[index]).to_digit(16).unwrap()).unwrap();
    let sha256 = std::array::from_fn(|index| 16 * digit(2 * index) + digit(2 * index + 1));
    Fingerprint {
        sha256,
        size: source.len(),
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
