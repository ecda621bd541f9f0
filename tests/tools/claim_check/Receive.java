// Receives everything from a queue by Amazon's SQS Extended Client Library: Receive QUEUE_URL BUCKET ENDPOINT
// Prints for each message its attribute event_id and the length and SHA-256 of its body. Deletes nothing.

import com.amazon.sqs.javamessaging.AmazonSQSExtendedClient;
import com.amazon.sqs.javamessaging.ExtendedClientConfiguration;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.HexFormat;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.s3.S3Client;
import software.amazon.awssdk.services.sqs.SqsClient;
import software.amazon.awssdk.services.sqs.model.Message;
import software.amazon.awssdk.services.sqs.model.ReceiveMessageRequest;

public class Receive {
    public static void main(String[] arguments) throws Exception {
        URI endpoint = URI.create(arguments[2]);
        var credentials = StaticCredentialsProvider.create(AwsBasicCredentials.create("test", "test"));
        S3Client s3 = S3Client.builder()
            .endpointOverride(endpoint).forcePathStyle(true).region(Region.US_EAST_1).credentialsProvider(credentials).build();
        SqsClient plain = SqsClient.builder()
            .endpointOverride(endpoint).region(Region.US_EAST_1).credentialsProvider(credentials).build();
        var configuration = new ExtendedClientConfiguration().withPayloadSupportEnabled(s3, arguments[1]);
        var sqs = new AmazonSQSExtendedClient(plain, configuration);
        var request = ReceiveMessageRequest.builder()
            .queueUrl(arguments[0]).maxNumberOfMessages(10).messageAttributeNames("All").build();
        for (var messages = sqs.receiveMessage(request).messages(); !messages.isEmpty();
                messages = sqs.receiveMessage(request).messages()) {
            for (Message message : messages) {
                byte[] body = message.body().getBytes(StandardCharsets.UTF_8);
                byte[] digest = MessageDigest.getInstance("SHA-256").digest(body);
                String id = message.messageAttributes().get("event_id").stringValue();
                System.out.println(id + " " + body.length + " " + HexFormat.of().formatHex(digest));
            }
        }
    }
}
