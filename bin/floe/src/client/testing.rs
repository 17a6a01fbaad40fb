//! For tests: a service that says what it is told to.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Client;

/// A client of a service that answers each request with the next of `answers`, on a connection of its own. An empty
/// answer is one that is lost.
pub(super) async fn service(answers: Vec<&'static str>) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    let remote = crate::cli::Remote { api_url: Some(url), token: Some("t".parse().unwrap()) };
    Client::connect(&remote, &crate::datadir::Layout::new("nowhere")).unwrap()
}
