// Bouncy Castle asks by OCSP about one certificate: for each hash, how it names that, and the status that it finds.
//
//     java -cp bcprov.jar:bcutil.jar:bcpkix.jar BouncyCastleOcsp.java URL ISSUER CERTIFICATE

import java.io.FileInputStream;
import java.math.BigInteger;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.cert.CertificateFactory;
import org.bouncycastle.asn1.x509.AlgorithmIdentifier;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.ocsp.BasicOCSPResp;
import org.bouncycastle.cert.ocsp.CertificateID;
import org.bouncycastle.cert.ocsp.OCSPReqBuilder;
import org.bouncycastle.cert.ocsp.OCSPResp;
import org.bouncycastle.cert.ocsp.SingleResp;
import org.bouncycastle.operator.DefaultDigestAlgorithmIdentifierFinder;
import org.bouncycastle.operator.jcajce.JcaDigestCalculatorProviderBuilder;

public class BouncyCastleOcsp {
    public static void main(String[] arguments) throws Exception {
        X509CertificateHolder issuer = read(arguments[1]);
        BigInteger serial = read(arguments[2]).getSerialNumber();
        for (String hash : new String[] {"SHA-1", "SHA-256"}) {
            AlgorithmIdentifier named = new DefaultDigestAlgorithmIdentifierFinder().find(hash);
            CertificateID asked = new CertificateID(
                    new JcaDigestCalculatorProviderBuilder().build().get(named), issuer, serial);
            BasicOCSPResp answer = ask(arguments[0], new OCSPReqBuilder().addRequest(asked).build().getEncoded());
            String found = "nothing about it";
            for (SingleResp each : answer.getResponses()) {
                if (each.getCertID().equals(asked)) {
                    found = each.getCertStatus() == null ? "good" : each.getCertStatus().toString();
                }
            }
            System.out.println(hash + " " + named.getParameters() + ": " + found);
        }
    }

    private static X509CertificateHolder read(String file) throws Exception {
        try (FileInputStream pem = new FileInputStream(file)) {
            return new X509CertificateHolder(
                    CertificateFactory.getInstance("X.509").generateCertificate(pem).getEncoded());
        }
    }

    private static BasicOCSPResp ask(String url, byte[] request) throws Exception {
        HttpRequest post = HttpRequest.newBuilder(URI.create(url))
                .header("Content-Type", "application/ocsp-request")
                .POST(HttpRequest.BodyPublishers.ofByteArray(request)).build();
        byte[] body = HttpClient.newHttpClient().send(post, HttpResponse.BodyHandlers.ofByteArray()).body();
        return (BasicOCSPResp) new OCSPResp(body).getResponseObject();
    }
}
