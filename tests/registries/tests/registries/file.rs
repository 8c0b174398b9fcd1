//! Files. That they are read in all their forms is shown by the crate's own tests.

use tower_lb_registries::{backends::Backends, file::File, traffic::no_request_is_lost};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_a_file_changes() {
    let mut backends = Backends::start(4).await;
    let mut file = File::default();
    let found = file.source().named("file").start().unwrap();
    no_request_is_lost(&mut file, &mut backends, &found).await;
}
