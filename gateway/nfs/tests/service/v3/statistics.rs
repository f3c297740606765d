//! What is counted of NFSv3: the same as of NFSv4.

use gateway_nfs::statistics::{ClientKey, Work};

use super::client::{ACCES, READ, V3, WRITE, read, write};
use crate::world::{run, serve, volume};

#[test]
fn data_read_and_written_is_counted_once_and_what_is_refused_is_not() {
    run(async {
        let service = serve(&volume()).await;
        let client = V3::new(&service);
        let root = client.root().await;
        let file = client.file(&root, "file", 0o600).await;
        let mut expected = Work::default();
        for (stable, bytes) in [(0, 100), (1, 2_000), (2, 300_000)] {
            client.done(WRITE, &write(&file, 0, stable, &vec![7; bytes])).await;
            expected.written_bytes += bytes as u64;
            assert_eq!(service.report().totals.work, expected, "stability {stable}");
        }
        let again = client.again(WRITE, &write(&file, 0, 2, &vec![7; 300_000])).await;
        assert_eq!((again.status, service.report().totals.work), (0, expected), "a retransmission writes nothing");
        client.done(READ, &read(&file, 0, 4_096)).await;
        client.done(READ, &read(&file, 299_990, 4_096)).await;
        expected.read_bytes = 4_096 + 10;
        let stranger = client.user(1_000);
        assert_eq!(stranger.call(READ, &read(&file, 0, 4_096)).await.status, ACCES);
        assert_eq!(stranger.call(WRITE, &write(&file, 0, 2, &[7; 10])).await.status, ACCES);
        let report = service.report();
        assert_eq!(report.totals.work, expected);
        let [told] = &*report.clients else { panic!("one address, not {:?}", report.clients) };
        assert_eq!((told.key, told.work), (ClientKey::Address(client.address.into()), expected));
        assert_eq!(told.version, Some((3, 0)));
    });
}
