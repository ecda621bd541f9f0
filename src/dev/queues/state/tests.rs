use super::*;

const URL: &str = "http://127.0.0.1:9324/000000000000/tickets.fifo";

fn queues() -> Queues {
    let mut queues = Queues::new("http://127.0.0.1:9324".to_owned(), "eu-west-1", 7);
    act(&mut queues, "CreateQueue", json!({"QueueName": "tickets.fifo", "Attributes": {"FifoQueue": "true"}}));
    act(&mut queues, "CreateQueue", json!({"QueueName": "audit"}));
    queues
}

fn act(queues: &mut Queues, action: &str, request: Json) -> Json {
    queues.act(action, &request, 1000).unwrap().answer
}

fn refused(queues: &mut Queues, action: &str, request: Json) -> &'static str {
    queues.act(action, &request, 1000).unwrap_err().code.legacy
}

fn entry(id: &str, body: &str) -> Json {
    json!({"Id": id, "MessageBody": body, "MessageGroupId": "g", "MessageDeduplicationId": body})
}

#[test]
fn queues_are_found_by_name_and_by_the_end_of_a_url() {
    let mut queues = queues();
    assert_eq!(act(&mut queues, "GetQueueUrl", json!({"QueueName": "tickets.fifo"})), json!({"QueueUrl": URL}));
    let listed = act(&mut queues, "ListQueues", json!({}));
    assert_eq!(listed, json!({"QueueUrls": ["http://127.0.0.1:9324/000000000000/audit", URL]}));
    assert_eq!(act(&mut queues, "ListQueues", json!({"QueueNamePrefix": "t"})), json!({"QueueUrls": [URL]}));
    act(&mut queues, "PurgeQueue", json!({"QueueUrl": "https://sqs.eu-west-1.amazonaws.com/1/audit"}));
    let missing = "AWS.SimpleQueueService.NonExistentQueue";
    assert_eq!(refused(&mut queues, "GetQueueUrl", json!({"QueueName": "tickets"})), missing);
    assert_eq!(refused(&mut queues, "PurgeQueue", json!({"QueueUrl": format!("{URL}x")})), missing);
    assert_eq!(refused(&mut queues, "PurgeQueue", json!({})), "MissingParameter");
    assert_eq!(refused(&mut queues, "PurgeQueue", json!({"QueueUrl": "http://127.0.0.1/"})), "InvalidAddress");
    assert_eq!(refused(&mut queues, "TagQueue", json!({})), "AWS.SimpleQueueService.UnsupportedOperation");
    let other = json!({"QueueName": "audit", "Attributes": {"DelaySeconds": "1"}});
    assert_eq!(refused(&mut queues, "CreateQueue", other), "QueueAlreadyExists");
    act(&mut queues, "CreateQueue", json!({"QueueName": "audit"}));
}

#[test]
fn a_batch_has_a_result_for_each_entry_and_shows_what_arrived() {
    let mut queues = queues();
    let entries = json!([entry("1", "a"), entry("2", "\u{1}"), entry("3", "a"), {"Id": "4", "MessageBody": "b"}]);
    let done = queues.act("SendMessageBatch", &json!({"QueueUrl": URL, "Entries": entries}), 1000).unwrap();
    let ids = |list: &Json| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one["Id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&done.answer["Successful"]), ["1", "3"]);
    assert_eq!(ids(&done.answer["Failed"]), ["2", "4"]);
    assert_eq!(done.answer["Failed"][0]["Code"], "InvalidMessageContents");
    assert_eq!(done.answer["Failed"][1]["Code"], "MissingParameter");
    assert_eq!(done.answer["Successful"][0]["MD5OfMessageBody"], "0cc175b9c0f1b6a831c399e269772661"); // printf a | md5sum
    assert_eq!(done.answer["Successful"][0]["MessageId"], done.answer["Successful"][1]["MessageId"], "a copy");
    let copies: Vec<bool> = done.arrivals.iter().map(|arrival| arrival.is_copy).collect();
    assert_eq!(copies, [false, true]);
    assert_eq!((done.arrivals[0].queue.as_str(), done.arrivals[0].group.as_deref()), ("tickets.fifo", Some("g")));
}

#[test]
fn a_batch_that_breaks_a_rule_is_refused_as_a_whole() {
    let mut queues = queues();
    let mut refused =
        |entries: Vec<Json>| refused(&mut queues, "SendMessageBatch", json!({"QueueUrl": URL, "Entries": entries}));
    let many = (0..11).map(|n| entry(&n.to_string(), "x")).collect();
    let long = "x".repeat(600_000);
    assert_eq!(refused(vec![]), "AWS.SimpleQueueService.EmptyBatchRequest");
    assert_eq!(refused(many), "AWS.SimpleQueueService.TooManyEntriesInBatchRequest");
    assert_eq!(refused(vec![entry("a", "x"), entry("a", "y")]), "AWS.SimpleQueueService.BatchEntryIdsNotDistinct");
    assert_eq!(refused(vec![entry("a b", "x")]), "AWS.SimpleQueueService.InvalidBatchEntryId");
    let long = |id: &str| json!({"Id": id, "MessageBody": long, "MessageGroupId": "g", "MessageDeduplicationId": id});
    assert_eq!(refused(vec![long("a"), long("b")]), "AWS.SimpleQueueService.BatchRequestTooLong");
    assert_eq!(act(&mut queues, "ReceiveMessage", json!({"QueueUrl": URL})), json!({}));
}

#[test]
fn what_is_received_has_the_attributes_that_were_asked_for() {
    let mut queues = queues();
    let number = json!({"DataType": "Number", "StringValue": "1"});
    let message = json!({
        "QueueUrl": URL, "MessageBody": "a", "MessageGroupId": "g", "MessageDeduplicationId": "d",
        "MessageAttributes": {"event_id": number, "event_type": number, "other": number},
        "MessageSystemAttributes": {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1"}},
    });
    let sent = act(&mut queues, "SendMessage", message);
    let mut receive = |more: Json| {
        let mut request = json!({"QueueUrl": URL, "VisibilityTimeout": 0});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        act(&mut queues, "ReceiveMessage", request)["Messages"][0].clone()
    };
    let bare = receive(json!({}));
    assert_eq!((&bare["Attributes"], &bare["MessageAttributes"]), (&Json::Null, &Json::Null));
    assert_eq!(bare["MD5OfMessageAttributes"], Json::Null);
    let all = receive(json!({"MessageAttributeNames": ["All"], "MessageSystemAttributeNames": ["All"]}));
    assert_eq!(all["MD5OfMessageAttributes"], sent["MD5OfMessageAttributes"]);
    assert_eq!(all["Attributes"]["SequenceNumber"], sent["SequenceNumber"]);
    assert_eq!(all["Attributes"]["AWSTraceHeader"], "Root=1");
    assert_eq!(all["Attributes"]["ApproximateReceiveCount"], "2");
    let some = receive(json!({"MessageAttributeNames": ["event_.*", "x"], "AttributeNames": ["MessageGroupId"]}));
    let names: Vec<&String> = some["MessageAttributes"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["event_id", "event_type"]);
    assert_eq!(some["Attributes"], json!({"MessageGroupId": "g"}));
}

#[test]
fn batches_delete_and_change_visibility_entry_by_entry() {
    let mut queues = queues();
    let entries = json!([entry("1", "a"), entry("2", "b")]);
    act(&mut queues, "SendMessageBatch", json!({"QueueUrl": URL, "Entries": entries}));
    let received = act(&mut queues, "ReceiveMessage", json!({"QueueUrl": URL, "MaxNumberOfMessages": 10}));
    let handle = |at: usize| received["Messages"][at]["ReceiptHandle"].clone();
    let changed = json!([{"Id": "1", "ReceiptHandle": handle(0), "VisibilityTimeout": 0}, {"Id": "2", "ReceiptHandle": "x", "VisibilityTimeout": 1}]);
    let changed = act(&mut queues, "ChangeMessageVisibilityBatch", json!({"QueueUrl": URL, "Entries": changed}));
    assert_eq!(
        (&changed["Successful"][0]["Id"], &changed["Failed"][0]["Code"]),
        (&json!("1"), &json!("ReceiptHandleIsInvalid"))
    );
    let deleted = json!([{"Id": "1", "ReceiptHandle": handle(1)}]);
    let deleted = act(&mut queues, "DeleteMessageBatch", json!({"QueueUrl": URL, "Entries": deleted}));
    assert_eq!(deleted, json!({"Successful": [{"Id": "1"}], "Failed": []}));
    let counts = act(&mut queues, "GetQueueAttributes", json!({"QueueUrl": URL, "AttributeNames": ["All"]}));
    assert_eq!(counts["Attributes"]["ApproximateNumberOfMessages"], "1");
    assert_eq!(counts["Attributes"]["ApproximateNumberOfMessagesNotVisible"], "0");
    assert_eq!(counts["Attributes"]["FifoQueue"], "true");
    assert_eq!(act(&mut queues, "GetQueueAttributes", json!({"QueueUrl": URL})), json!({}));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let mut queues = queues();
    for (name, value) in [
        ("MaxNumberOfMessages", 0),
        ("MaxNumberOfMessages", 11),
        ("WaitTimeSeconds", 21),
        ("VisibilityTimeout", 43_201),
    ] {
        assert_eq!(
            refused(&mut queues, "ReceiveMessage", json!({"QueueUrl": URL, name: value})),
            "InvalidParameterValue"
        );
    }
    assert_eq!(queues.wait_of(&json!({"QueueUrl": URL, "WaitTimeSeconds": 3})), 3000);
    assert_eq!(queues.wait_of(&json!({"QueueUrl": URL})), 0);
}

#[test]
fn full_queues_refuse_until_somebody_deletes() {
    let mut queues = queues();
    queues.max_bytes = 100_000;
    let mut bodies = 0..;
    let mut send = |queues: &mut Queues| {
        let body = format!("{:01000}", bodies.next().unwrap());
        queues.act("SendMessage", &json!({"QueueUrl": "http://127.0.0.1/0/audit", "MessageBody": body}), 1000)
    };
    let taken = std::iter::from_fn(|| send(&mut queues).ok()).take(1000).count();
    assert!((50..100).contains(&taken), "{taken}");
    assert_eq!(send(&mut queues).unwrap_err().code, refusal::OVER_LIMIT);
    act(&mut queues, "PurgeQueue", json!({"QueueUrl": "http://127.0.0.1/0/audit"}));
    assert!(send(&mut queues).is_ok());
}

#[test]
fn message_ids_are_uuids_of_version_4() {
    let id = uuid(&mut fastrand::Rng::with_seed(1));
    let parts: Vec<usize> = id.split('-').map(str::len).collect();
    assert_eq!(parts, [8, 4, 4, 4, 12]);
    assert!(id.as_bytes()[14] == b'4' && b"89ab".contains(&id.as_bytes()[19]), "{id}");
}

#[test]
fn queues_full_of_deduplication_ids_take_messages_again_after_five_minutes() {
    let mut queues = queues();
    queues.max_bytes = 100_000;
    let mut ids = 0..;
    let mut send = |queues: &mut Queues, now: u64| {
        let id = ids.next().unwrap().to_string();
        let message = json!({"QueueUrl": URL, "MessageBody": "a", "MessageGroupId": "g", "MessageDeduplicationId": id});
        let sent = queues.act("SendMessage", &message, now).map(drop);
        act(queues, "PurgeQueue", json!({"QueueUrl": URL}));
        sent
    };
    let taken = std::iter::from_fn(|| send(&mut queues, 1000).ok()).take(1000).count();
    assert!((400..600).contains(&taken), "{taken}");
    assert!(send(&mut queues, 300_999).is_err());
    assert!(send(&mut queues, 301_000).is_ok());
}
