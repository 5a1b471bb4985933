//! Clients of the JobManager's listener, and all of it over real sockets.

use super::*;

#[tokio::test(start_paused = true)]
async fn clients_get_one_answer_per_request_or_a_typed_error() {
    let mut cluster = Cluster::start().await;
    cluster.job_manager.registered().await;
    let (transport, secret) = (cluster.network.node("cli"), Secret(SECRET.to_owned()));
    let mut client = Client::connect(&transport, "jm:1", &secret, TIMEOUT)
        .await
        .unwrap();
    let request = || ClientRequest::ListJobs;

    async fn asked(
        job_manager: &mut FakeJobManager,
    ) -> tokio::sync::oneshot::Sender<Result<ClientResponse, RpcError>> {
        match job_manager.next().await {
            PeerEvent::Request { request, reply } => {
                assert_eq!(request, ClientRequest::ListJobs);
                reply
            }
            other => panic!("{}", describe(&other)),
        }
    }

    // An answer that takes longer than any silence would be allowed to.
    let (response, ()) = tokio::join!(client.request(request(), None), async {
        let reply = asked(&mut cluster.job_manager).await;
        tokio::time::sleep(CLIENT_SILENCE_MAX * 3).await;
        reply.send(Ok(ClientResponse::Jobs(Vec::new()))).unwrap();
    });
    assert_eq!(response, Ok(ClientResponse::Jobs(Vec::new())));

    // A refusal arrives as it was made.
    let (response, ()) = tokio::join!(client.request(request(), None), async {
        let error = RpcError::JobNotFound(JobId(1));
        asked(&mut cluster.job_manager)
            .await
            .send(Err(error))
            .unwrap();
    });
    assert_eq!(response, Err(RpcError::JobNotFound(JobId(1))));

    // A deadline; the late answer is not taken for that of the next request.
    let late = client.request(request(), Some(INTERVAL)).await;
    assert!(
        matches!(late, Err(RpcError::Timeout { millis: 1000, .. })),
        "{late:?}"
    );
    let first = asked(&mut cluster.job_manager).await;
    let (response, ()) = tokio::join!(client.request(request(), None), async {
        tokio::time::sleep(INTERVAL).await;
        first.send(Ok(ClientResponse::Canceled)).unwrap();
        let reply = asked(&mut cluster.job_manager).await;
        reply.send(Ok(ClientResponse::Jobs(Vec::new()))).unwrap();
    });
    assert_eq!(response, Ok(ClientResponse::Jobs(Vec::new())));

    // A client that goes away: whoever works for it can see that.
    let waiting = client.request(request(), Some(INTERVAL)).await;
    assert!(waiting.is_err());
    let mut reply = asked(&mut cluster.job_manager).await;
    drop(client);
    reply.closed().await;

    // A JobManager that vanishes without a word.
    let mut client = Client::connect(&transport, "jm:1", &secret, TIMEOUT)
        .await
        .unwrap();
    cluster.network.silence("jm", "cli");
    let before = Instant::now();
    let silent = client.request(request(), None).await;
    assert!(
        matches!(silent, Err(RpcError::Timeout { .. })),
        "{silent:?}"
    );
    assert!(before.elapsed() <= CLIENT_SILENCE_MAX);
    assert!(matches!(
        client.request(request(), None).await,
        Err(RpcError::Closed { .. })
    ));
}

/// Their hosts have vanished, without a word.
#[tokio::test(start_paused = true)]
async fn clients_that_ask_for_nothing_any_more_leave_their_places_to_others() {
    let mut cluster = Cluster::start().await;
    cluster.job_manager.registered().await;
    let secret = Secret(SECRET.to_owned());
    let connect = async |node: &str| {
        let transport = cluster.network.node(node);
        let client = Client::connect(&transport, "jm:1", &secret, TIMEOUT).await;
        client.unwrap()
    };
    let mut idle = Vec::new();
    for _ in 0..CLIENT_SESSIONS_MAX {
        idle.push(connect("cli").await);
    }
    cluster.network.silence("cli", "jm");
    cluster.network.silence("jm", "cli");
    let request = || ClientRequest::ListJobs;
    let refused = connect("other").await.request(request(), None).await;
    assert!(
        matches!(refused, Err(RpcError::Closed { .. })),
        "{refused:?}"
    );
    tokio::time::sleep(CLIENT_IDLE_MAX + INTERVAL).await;
    let mut client = connect("other").await;
    let (response, ()) = tokio::join!(client.request(request(), None), async {
        // Between heartbeats.
        let reply = loop {
            if let PeerEvent::Request { reply, .. } = cluster.job_manager.next().await {
                break reply;
            }
        };
        reply.send(Ok(ClientResponse::Jobs(Vec::new()))).unwrap();
    });
    assert_eq!(response, Ok(ClientResponse::Jobs(Vec::new())));
}

#[tokio::test(start_paused = true)]
async fn clients_learn_why_they_cannot_connect() {
    let cluster = Cluster::start().await;
    let transport = cluster.network.node("cli");
    let (right, wrong) = (Secret(SECRET.to_owned()), Secret("wrong".to_owned()));
    let error = Client::connect(&transport, "jm:1", &wrong, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Handshake { .. }), "{error}");
    let error = Client::connect(&transport, "nowhere:1", &right, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Closed { .. }), "{error}");
    cluster.network.freeze("jm");
    let error = Client::connect(&transport, "jm:1", &right, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Timeout { .. }), "{error}");

    let standby = Arc::new(cluster.network.node("standby"));
    let _standby = FakeJobManager::start(standby, "standby:1", None).await;
    let error = Client::connect(&transport, "standby:1", &right, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Refused(_)), "{error}");
    let welcome = probe(&transport, "standby:1", &right, TIMEOUT)
        .await
        .unwrap();
    assert_eq!(welcome.epoch, None);
    let address = cluster.task_manager.probe_address();
    let welcome = probe(&transport, address, &right, TIMEOUT).await.unwrap();
    assert_eq!((welcome.instance, welcome.epoch), (InstanceId(1), None));
}

/// The same over real sockets: register, deploy, fail, ask as a client, shut down.
#[tokio::test]
async fn it_works_over_tcp() {
    let transport = Arc::new(TcpTransport);
    let mut job_manager = FakeJobManager::start(transport, "127.0.0.1:0", Some(1)).await;
    let address = job_manager.listener.address().to_owned();
    let (runner, is_closed) = (FakeRunner::new(), Arc::new(Mutex::new(false)));
    let leader = Arc::new(Mutex::new(address.clone()));
    let network = crate::rpc::MemoryNetwork::new();
    let mut options = options(&network, "127.0.0.1", 1, &runner, &leader, &is_closed);
    options.transport = Arc::new(TcpTransport);
    let task_manager = TaskManager::start(options).await.unwrap();
    let (_, peer) = job_manager.registered().await;
    let id = attempt(0, 1, 1);
    (peer.send)(deploy(&[id]));
    while !runner.is_started(id) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    runner.end(id, TaskOutcome::Finished);
    assert_eq!(
        job_manager.message().await,
        ended(id, TaskOutcome::Finished)
    );

    let secret = Secret(SECRET.to_owned());
    let mut client = Client::connect(&TcpTransport, &address, &secret, TIMEOUT)
        .await
        .unwrap();
    let (response, ()) = tokio::join!(
        client.request(ClientRequest::ListJobs, Some(TIMEOUT)),
        async {
            match job_manager.next().await {
                PeerEvent::Request { reply, .. } => {
                    reply.send(Ok(ClientResponse::Canceled)).unwrap()
                }
                other => panic!("{}", describe(&other)),
            }
        }
    );
    assert_eq!(response, Ok(ClientResponse::Canceled));
    let probed = probe(
        &TcpTransport,
        task_manager.probe_address(),
        &secret,
        TIMEOUT,
    )
    .await
    .unwrap();
    assert_eq!(probed.instance, InstanceId(1));

    let reason = "done".to_owned();
    assert_eq!(
        task_manager.shutdown("done").await,
        TaskManagerEnd::Shutdown { reason }
    );
    assert!(matches!(
        job_manager.message().await,
        ToJobManager::Goodbye { .. }
    ));
    job_manager.lost().await;
    let refused = probe(
        &TcpTransport,
        task_manager.probe_address(),
        &secret,
        TIMEOUT,
    )
    .await;
    assert!(
        matches!(refused, Err(RpcError::Closed { .. })),
        "{refused:?}"
    );
    drop(client);
    job_manager.listener.shutdown().await;
    let refused = probe(&TcpTransport, &address, &secret, TIMEOUT).await;
    assert!(
        matches!(refused, Err(RpcError::Closed { .. })),
        "{refused:?}"
    );
}
