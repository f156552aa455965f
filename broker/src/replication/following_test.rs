//! What a follower takes from its leader.

use super::*;

#[tokio::test]
async fn a_follower_takes_no_batch_of_an_epoch_later_than_its_leaders_l4() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OTHER, OURS])])).await;
    let [followed, led] = [id(1, 0), id(1, 1)].map(|id| broker.manager.partition(id).unwrap());
    let admission = Arc::new(Admission::new(None));
    let sent = |base_offset, leader_epoch| {
        let record = NewRecord { timestamp: 1_000, value: Some(b"v"), ..NewRecord::default() };
        let batch = BatchBuilder::new(Compression::None).base_offset(base_offset).leader_epoch(leader_epoch);
        RecordBytes::from(batch.append(record).build())
    };
    // The leader's epoch is 3.
    let both = [sent(0, 3).into_bytes(), sent(1, 4).into_bytes()].concat();
    let refused = followed.append_fetched(3, &RecordBytes::from(Bytes::from(both)), &admission);
    assert!(matches!(&refused, Err(FollowError::Rejected(why)) if why.contains("epoch 4")), "{refused:?}");
    assert_eq!(followed.log().ends().log_end, 0);
    assert_eq!(followed.append_fetched(3, &sent(0, 2), &admission).unwrap(), 1, "of an earlier leader");
    assert_eq!(followed.append_fetched(3, &sent(1, 3), &admission).unwrap(), 2);
    // What an answer of another epoch brings comes from somebody who does not lead, or from one not heard of yet.
    for leader_epoch in [2, 4] {
        let stale = followed.append_fetched(leader_epoch, &sent(2, leader_epoch), &admission);
        assert!(matches!(stale, Err(FollowError::Stale)), "{leader_epoch}");
    }
    let stale = led.append_fetched(3, &sent(0, 3), &admission);
    assert!(matches!(stale, Err(FollowError::Stale)), "a leader takes nothing from anyone");
    assert_eq!((followed.log().ends().log_end, led.log().ends().log_end), (2, 0));
    broker.manager.shutdown().await;
}
