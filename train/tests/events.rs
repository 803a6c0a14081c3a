//! What TensorBoard is given, read back with a reader of its own.

mod workshop;

use std::time::{SystemTime, UNIX_EPOCH};

use lipschitz_train::events::EventWriter;
use workshop::events::{field, files, frames, masked, points};
use workshop::{TINY, Workshop};

fn found(bytes: &[u8], number: u64) -> Vec<u8> {
    field(bytes, number).unwrap()
}

/// The reader's checksum is not the writer's: the check value of CRC-32C (Castagnoli), and the mask.
#[test]
fn the_reader_knows_the_published_checksum() {
    let crc: u32 = 0xe306_9283;
    assert_eq!(masked(b"123456789"), crc.rotate_right(15).wrapping_add(0xa282_ead8));
}

#[test]
fn scalars_come_back_with_tag_step_value_and_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(&directory.path().join("new")).unwrap();
    writer.scalar("loss", 7, 1.25);
    writer.scalar("log10 Lipschitz bound", 300, f32::NEG_INFINITY);
    writer.flush().unwrap();
    let name = writer.path().file_name().unwrap().to_str().unwrap().to_string();
    assert!(name.starts_with("events.out.tfevents.") && name.ends_with(".train"), "{name}");
    let events = frames(writer.path());
    assert_eq!(found(&events[0], 3), b"brain.Event:2");
    assert_eq!(events.len(), 3);
    for (event, (tag, step, value)) in events[1..]
        .iter()
        .zip([("loss", 7_u64, 1.25), ("log10 Lipschitz bound", 300, f32::NEG_INFINITY)])
    {
        assert_eq!(found(event, 2), step.to_le_bytes());
        let scalar = found(&found(event, 5), 1);
        assert_eq!(
            (found(&scalar, 1), found(&scalar, 2)),
            (tag.as_bytes().to_vec(), value.to_le_bytes().to_vec())
        );
        let wall = f64::from_le_bytes(found(event, 1).try_into().unwrap());
        assert!(
            (wall - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()).abs()
                < 60.0
        );
    }
}

#[test]
fn every_start_has_its_own_file_and_a_resumed_one_says_from_where() {
    let directory = tempfile::tempdir().unwrap();
    let first = EventWriter::create(directory.path()).unwrap();
    let second = EventWriter::resume(directory.path(), 40).unwrap();
    assert!(first.path() < second.path());
    let events = frames(second.path());
    assert_eq!(found(&events[1], 2), 40_u64.to_le_bytes());
    assert_eq!(found(&found(&events[1], 7), 1), 1_u64.to_le_bytes());
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = EventWriter::create(&file.path().join("sub")).unwrap_err().to_string();
    assert!(error.starts_with(&file.path().display().to_string()), "{error}");
}

/// As TensorBoard reads them: a start takes back what an interrupted run logged and did not keep,
/// and a record that a crash cut short ends its file and no other.
#[test]
fn a_start_takes_back_its_step_and_later_ones() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = EventWriter::create(directory.path()).unwrap();
    (1..=5).for_each(|step| first.scalar("a", step, step as f32));
    first.flush().unwrap();
    let torn = std::fs::read(first.path()).unwrap();
    std::fs::write(first.path(), &torn[..torn.len() - 3]).unwrap();
    let mut second = EventWriter::resume(directory.path(), 4).unwrap();
    second.scalar("a", 4, 40.0);
    drop(second);
    let read = &points(directory.path())["a"];
    let expected = [(1, 1.0f32), (2, 2.0), (3, 3.0), (4, 40.0)].map(|(s, v)| (s, v.to_bits()));
    assert_eq!(*read, expected);
}

/// A run in parts shows what one in a piece does, and one that is resumed with nothing to do still
/// shows all of it.
#[test]
fn a_resumed_run_shows_every_step_once() {
    let w = Workshop::new(TINY);
    let set = |steps: &'static str| [steps, "train.schedule.kind=constant"];
    w.done("whole", &set("train.steps=12"), &[]);
    w.done("parts", &set("train.steps=5"), &[]);
    for _ in 0..3 {
        w.done("parts", &set("train.steps=12"), &["--resume"]);
    }
    assert_eq!(files(&w.path("parts")).len(), 4);
    let (whole, parts) = (points(&w.path("whole")), points(&w.path("parts")));
    let steps: Vec<u64> = whole["loss/train"].iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<u64>>());
    // The end of the first part is evaluated as an end.
    for (tag, all) in &whole {
        let evaluated = tag.ends_with("/val") || tag.starts_with("range/");
        let of_parts = parts[tag].iter().filter(|(step, _)| !evaluated || *step != 5);
        assert!(of_parts.eq(all), "{tag}");
    }
    assert_eq!(whole.len(), parts.len());
}
