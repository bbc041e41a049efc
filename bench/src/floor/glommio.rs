//! The echo that the floor is judged by: glommio's own `TcpStream`, one task a connection.

use std::io;
use std::net::SocketAddr;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{GlommioError, LocalExecutorBuilder, Placement, spawn_local};

use crate::floor::ECHO_BYTES;

/// Echoes on `cpu` until it is killed; `ready` is told where.
pub(crate) fn serve(cpu: usize, ready: impl FnOnce(SocketAddr) -> io::Result<()>) -> anyhow::Result<()> {
    // The default of 10 MiB for each of three rings is more than this needs.
    let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu)).io_memory(1 << 20).make().map_err(plain)?;
    executor.run(async move {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(plain)?;
        ready(listener.local_addr().map_err(plain)?)?;
        loop {
            let stream = listener.accept().await.map_err(plain)?;
            stream.set_nodelay(true).map_err(plain)?;
            spawn_local(async move {
                // A connection that breaks is the load's to report.
                let _ = echo(stream).await;
            })
            .detach();
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; ECHO_BYTES];
    loop {
        let bytes = stream.read(&mut buffer).await?;
        if bytes == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..bytes]).await?;
    }
}

fn plain(error: GlommioError<()>) -> anyhow::Error {
    anyhow::anyhow!("glommio: {error}")
}
