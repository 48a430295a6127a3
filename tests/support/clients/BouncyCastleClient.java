// Bouncy Castle's EST client against one service: everything that a device asks, a line for each answer.
//
//     java -cp bcprov.jar:bcutil.jar:bcpkix.jar BouncyCastleClient.java ANCHORS HOST:PORT NAME TOKEN WAITING-LABEL

import java.io.ByteArrayInputStream;
import java.io.FileInputStream;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.util.HashSet;
import java.util.Set;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import org.bouncycastle.asn1.pkcs.PKCSObjectIdentifiers;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.asn1.x509.Extension;
import org.bouncycastle.asn1.x509.ExtensionsGenerator;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.est.CSRRequestResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequest;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

public class BouncyCastleClient {
    static CertificateFactory certificates;
    static Set<TrustAnchor> anchors = new HashSet<>();
    static String authority;

    interface Step {
        String take() throws Exception;
    }

    public static void main(String[] words) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        certificates = CertificateFactory.getInstance("X.509");
        for (Object each : certificates.generateCertificates(new FileInputStream(words[0]))) {
            anchors.add(new TrustAnchor((X509Certificate) each, null));
        }
        authority = words[1];
        String name = words[2], label = words[4];
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC");
        generator.initialize(new ECGenParameterSpec("secp256r1"));
        KeyPair pair = generator.generateKeyPair();
        ESTService stranger = service(null, null);
        X509CertificateHolder[] got = new X509CertificateHolder[1];

        step("cacerts", () -> stranger.getCACerts().getCertificateStore().getMatches(null).size() + " certificates");
        step("csrattrs", () -> {
            CSRRequestResponse told = stranger.getCSRAttributes();
            return told.getAttributesResponse().getRequirements().size() + " attributes";
        });
        step("enrol", () -> {
            got[0] = only(stranger.simpleEnroll(false, request(pair, name, null), password(name, words[3])));
            return got[0].getSubject().toString();
        });
        step("again", () -> {
            KeyPair another = generator.generateKeyPair();
            return only(stranger.simpleEnroll(false, request(another, name, null), password(name, words[3]))).toString();
        });
        KeyManager[] own = keys(pair, got[0]);
        Extension names = got[0].getExtension(Extension.subjectAlternativeName);
        step("renew", () -> only(service(own[0], null).simpleEnroll(true, request(pair, name, names), null))
            .getSubject().toString());
        step("wait", () -> {
            PKCS10CertificationRequest request = request(generator.generateKeyPair(), name + "-waits", null);
            EnrollmentResponse answer = service(null, label).simpleEnroll(false, request, null);
            return answer.isCompleted() ? "a certificate" : "a time to come again";
        });
    }

    static void step(String what, Step step) throws Exception {
        try {
            System.out.println(what + ": " + step.take());
        } catch (ESTException refusal) {
            String text = refusal.getBody() == null ? "" : new String(refusal.getBody().readAllBytes());
            System.out.println(what + ": " + refusal.getStatusCode() + " " + text.split(":")[0] + " " + refusal.getCause());
        }
    }

    static ESTService service(KeyManager own, String label) throws Exception {
        JsseESTServiceBuilder builder =
            new JsseESTServiceBuilder(authority, JcaJceUtils.getCertPathTrustManager(anchors, null));
        builder.withTimeout(60_000);
        if (own != null) {
            builder.withKeyManager(own);
        }
        if (label != null) {
            builder.withLabel(label);
        }
        return builder.build();
    }

    static ESTAuth password(String user, String token) throws Exception {
        return new JcaHttpAuthBuilder(null, user, token.toCharArray()).build();
    }

    static PKCS10CertificationRequest request(KeyPair pair, String name, Extension names) throws Exception {
        JcaPKCS10CertificationRequestBuilder builder =
            new JcaPKCS10CertificationRequestBuilder(new X500Name("CN=" + name), pair.getPublic());
        if (names != null) {
            ExtensionsGenerator extensions = new ExtensionsGenerator();
            extensions.addExtension(names);
            builder.addAttribute(PKCSObjectIdentifiers.pkcs_9_at_extensionRequest, extensions.generate());
        }
        return builder.build(new JcaContentSignerBuilder("SHA256withECDSA").build(pair.getPrivate()));
    }

    static X509CertificateHolder only(EnrollmentResponse answer) {
        return (X509CertificateHolder) answer.getStore().getMatches(null).iterator().next();
    }

    static KeyManager[] keys(KeyPair pair, X509CertificateHolder certificate) throws Exception {
        char[] password = "unused".toCharArray();
        X509Certificate own =
            (X509Certificate) certificates.generateCertificate(new ByteArrayInputStream(certificate.getEncoded()));
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        store.setKeyEntry("own", pair.getPrivate(), password, new X509Certificate[] {own});
        KeyManagerFactory factory = KeyManagerFactory.getInstance("PKIX");
        factory.init(store, password);
        return factory.getKeyManagers();
    }
}
