package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// As TestTheModuleChangesNoSemantics, for what is no plain request and answer: gRPC with trailers,
// gRPC from JSON, requests that are mirrored, 1xx answers, WebSockets and tunnels.
func TestTheModuleChangesNoStreams(t *testing.T) {
	certificate, key := selfSigned(t)
	for _, encrypted := range []bool{false, true} {
		t.Run(map[bool]string{false: "clear", true: "TLS"}[encrypted], func(t *testing.T) {
			t.Parallel()
			with := func(guarded bool) *playground {
				p := &playground{t: t, encrypted: encrypted, mirrored: &sync.Map{}}
				p.scene = start(t, setup{face: envoytest.Module, workers: 2, upstream: p.upstream(), edit: func(c envoytest.Config) {
					p.edit(c)
					if encrypted {
						c.SetTLS(certificate, key)
						offerHTTP2(c)
					}
					if !guarded {
						c.RemoveGuard()
					}
				}})
				return p
			}
			plain, guarded := with(false), with(true)
			for _, q := range playgrounds() {
				want := q.ask(plain)
				require.Equal(t, want, q.ask(guarded), q.name)
				require.Contains(t, want, q.want, q.name)
			}
			guarded.quiet()
		})
	}
}

// playground is an Envoy with upstreams for all of that.
type playground struct {
	*scene
	t         *testing.T
	encrypted bool
	mirrored  *sync.Map // what the mirror has got, by x-id
}

// upstream mirrors what it gets, hints early, or echoes the messages of a WebSocket.
func (p *playground) upstream() string {
	return listenHTTP(p.t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ws":
			echoMessages(w, r)
		case "/hints":
			w.Header().Set("link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "hinted")
		default:
			fmt.Fprint(w, told(r.Body))
		}
	}))
}

// told is the length and the hash of what there is to read.
func told(r io.Reader) string {
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	if err != nil {
		return "broken"
	}
	return fmt.Sprintf("%d %x", n, hash.Sum(nil))
}

func (p *playground) edit(c envoytest.Config) {
	untouched(c)
	c.AddCluster("mirror", listenHTTP(p.t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		p.mirrored.Store(r.Header.Get("x-id"), told(r.Body))
	})))
	c.AddCluster("tunnel", tunnelled(p.t))
	c.SetEndpoint("grpc_upstream", p.serveGRPC())
	const types = "type.googleapis.com/envoy.extensions.filters.http."
	c.SetConnectionManager(func(hcm map[string]any) {
		hcm["upgrade_configs"] = []any{map[string]any{"upgrade_type": "websocket"}, map[string]any{"upgrade_type": "CONNECT"}}
		hcm["http2_protocol_options"] = map[string]any{"allow_connect": true}
		filters := hcm["http_filters"].([]any)
		router := filters[len(filters)-1]
		hcm["http_filters"] = append(filters[:len(filters)-1:len(filters)-1], map[string]any{
			"name": "transcoder", "typed_config": map[string]any{
				"@type":                types + "grpc_json_transcoder.v3.GrpcJsonTranscoder",
				"proto_descriptor_bin": base64.StdEncoding.EncodeToString(descriptors(p.t, grpc_testing.File_grpc_testing_test_proto)),
				"services":             []any{"grpc.testing.TestService"}, "auto_mapping": true,
			},
		}, router)
	})
	c.AddRoute(map[string]any{"name": "mirrored", "match": map[string]any{"prefix": "/mirrored"}, "route": map[string]any{
		"cluster": "upstream", "timeout": "0s", "request_mirror_policies": []any{map[string]any{"cluster": "mirror"}},
	}})
	c.AddRoute(map[string]any{"name": "json", "match": map[string]any{"prefix": "/grpc.testing"}, "route": map[string]any{"cluster": "grpc_upstream", "timeout": "0s"}})
	c.AddRoute(map[string]any{"name": "tunnel", "match": map[string]any{"connect_matcher": map[string]any{}}, "route": map[string]any{
		"cluster": "tunnel", "timeout": "0s", "upgrade_configs": []any{map[string]any{"upgrade_type": "CONNECT", "connect_config": map[string]any{}}},
	}})
}

// offerHTTP2 has all listeners of TLS offer HTTP/2 in the handshake: grpc-go wants that.
func offerHTTP2(c envoytest.Config) {
	for _, l := range c.Listeners() {
		for _, chain := range l["filter_chains"].([]any) {
			socket := chain.(map[string]any)["transport_socket"].(map[string]any)["typed_config"].(map[string]any)
			socket["common_tls_context"].(map[string]any)["alpn_protocols"] = []any{"h2", "http/1.1"}
		}
	}
}

// descriptors are those of a file and of all that it imports.
func descriptors(t *testing.T, f protoreflect.FileDescriptor) []byte {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	add(f)
	text, err := proto.Marshal(set)
	require.NoError(t, err)
	return text
}

// witnessGRPC tells in trailers what it got, and in messages as much as it is asked for.
type witnessGRPC struct {
	grpc_testing.UnimplementedTestServiceServer
}

func (p *playground) serveGRPC() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(p.t, err)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(16 * mib))
	grpc_testing.RegisterTestServiceServer(server, witnessGRPC{})
	go func() { _ = server.Serve(l) }()
	p.t.Cleanup(server.Stop)
	return l.Addr().String()
}

func (witnessGRPC) UnaryCall(ctx context.Context, r *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	if s := r.GetResponseStatus(); s.GetCode() != 0 {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage()) //nolint:gosec // a small number
	}
	got := told(bytes.NewReader(r.GetPayload().GetBody()))
	if err := grpc.SetTrailer(ctx, metadata.Pairs("x-got", got)); err != nil {
		return nil, err
	}
	body := bytes.Repeat([]byte("y"), int(r.GetResponseSize()))
	return &grpc_testing.SimpleResponse{Username: got, Payload: &grpc_testing.Payload{Body: body}}, nil
}

func (witnessGRPC) FullDuplexCall(s grpc_testing.TestService_FullDuplexCallServer) error {
	hash, n := sha256.New(), 0
	for {
		r, err := s.Recv()
		if err == io.EOF {
			s.SetTrailer(metadata.Pairs("x-got", fmt.Sprintf("%d %x", n, hash.Sum(nil))))
			return nil
		}
		if err != nil {
			return err
		}
		n += len(r.GetPayload().GetBody())
		hash.Write(r.GetPayload().GetBody())
		if err := s.Send(&grpc_testing.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// playing is something that is done with both, and what a plain Envoy is known to make of it.
type playing struct {
	name string
	want string
	ask  func(p *playground) string
}

func playgrounds() (all []playing) {
	add := func(name, want string, ask func(p *playground) string) { all = append(all, playing{name, want, ask}) }
	for _, size := range []int{0, 100 << 10, 400 << 10, 3 * mib, 8 * mib} {
		want := fmt.Sprintf("OK %d ", size)
		add(fmt.Sprintf("gRPC, %d", size), want, func(p *playground) string { return p.unary(size, 0) })
		add(fmt.Sprintf("gRPC, answers %d", size), "OK 0 ", func(p *playground) string { return p.unary(0, size) })
		for _, http2 := range []bool{false, true} {
			json, kept := "", ""
			if size <= 400<<10 { // what base64 makes of it is below 1 MiB, which a plain Envoy's filters may hold
				json, kept = "200", fmt.Sprintf("200 %d ", size)
			}
			add(fmt.Sprintf("gRPC from JSON, %d, HTTP/2 %v", size, http2), json, func(p *playground) string { return p.transcoded(http2, size) })
			add(fmt.Sprintf("mirrored, %d, HTTP/2 %v", size, http2), kept, func(p *playground) string { return p.mirror(http2, size) })
		}
	}
	add("gRPC, an error", "ResourceExhausted", func(p *playground) string { return p.failing() })
	add("gRPC, both ways", "OK 6553600 ", func(p *playground) string { return p.duplex(100, 64<<10) })
	for _, http2 := range []bool{false, true} {
		add(fmt.Sprintf("103, HTTP/2 %v", http2), "200 hinted", func(p *playground) string { return p.hints(http2) })
		add(fmt.Sprintf("CONNECT, HTTP/2 %v", http2), "200 6553600", func(p *playground) string { return p.tunnel(http2) })
	}
	add("WebSocket", "101 echoed", func(p *playground) string { return p.socket() })
	return all
}

func (p *playground) client(http2 bool) *http.Client { return secureClient(p.t, http2, p.encrypted) }

func (p *playground) page(path string) string {
	if p.encrypted {
		return "https://" + p.addr + path
	}
	return "http://" + p.addr + path
}

// send sends a body and tells what came.
func (p *playground) send(http2 bool, path, id, kind string, body []byte) string {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.page(path), bytes.NewReader(body))
	require.NoError(p.t, err)
	req.Header.Set("content-type", kind)
	req.Header.Set("x-id", id)
	res, err := p.client(http2).Do(req)
	if err != nil {
		return "no answer" // it still sends when it is refused
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return "no answer"
	}
	return fmt.Sprintf("%d %s", res.StatusCode, text)
}

func (p *playground) transcoded(http2 bool, size int) string {
	body, err := json.Marshal(map[string]any{"payload": map[string]any{"body": make([]byte, size)}, "response_size": size})
	require.NoError(p.t, err)
	for range 5 { // whether who still sends sees the 413 is a matter of time
		if got := p.send(http2, "/grpc.testing.TestService/UnaryCall", "", "application/json", body); got != "no answer" {
			return fmt.Sprintf("%.3s %s", got, told(strings.NewReader(got)))
		}
	}
	return "no answer"
}

func (p *playground) mirror(http2 bool, size int) string {
	id := fmt.Sprintf("%d %v", size, http2)
	got := p.send(http2, "/mirrored", id, "text/plain", bytes.Repeat([]byte("m"), size))
	copied, end := any(nil), time.Now().Add(300*time.Millisecond)
	if size <= 400<<10 {
		end = time.Now().Add(10 * time.Second)
	}
	for there := false; !there && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		copied, there = p.mirrored.Load(id)
	}
	return fmt.Sprintf("%s, mirrored %v", got, copied)
}

func (p *playground) dialGRPC() grpc_testing.TestServiceClient {
	p.t.Helper()
	c := insecure.NewCredentials()
	if p.encrypted {
		c = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its own certificate, on loopback
	}
	conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(c), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16*mib)))
	require.NoError(p.t, err)
	p.t.Cleanup(func() { conn.Close() })
	return grpc_testing.NewTestServiceClient(conn)
}

func (p *playground) unary(size, answers int) string {
	var trailer metadata.MD
	r, err := p.dialGRPC().UnaryCall(p.t.Context(), &grpc_testing.SimpleRequest{
		Payload: &grpc_testing.Payload{Body: bytes.Repeat([]byte("x"), size)}, ResponseSize: int32(answers), //nolint:gosec // small
	}, grpc.Trailer(&trailer))
	return fmt.Sprintf("%v %s, and %s, answered %s", status.Code(err), strings.Join(trailer.Get("x-got"), ""), r.GetUsername(),
		told(bytes.NewReader(r.GetPayload().GetBody())))
}

func (p *playground) failing() string {
	_, err := p.dialGRPC().UnaryCall(p.t.Context(), &grpc_testing.SimpleRequest{ResponseStatus: &grpc_testing.EchoStatus{Code: 8, Message: "no"}})
	return fmt.Sprint(err)
}

func (p *playground) duplex(messages, size int) string {
	s, err := p.dialGRPC().FullDuplexCall(p.t.Context())
	require.NoError(p.t, err)
	body := bytes.Repeat([]byte("z"), size)
	for range messages {
		require.NoError(p.t, s.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: body}}))
		r, err := s.Recv()
		require.NoError(p.t, err)
		require.Equal(p.t, body, r.GetPayload().GetBody())
	}
	require.NoError(p.t, s.CloseSend())
	_, err = s.Recv()
	require.ErrorIs(p.t, err, io.EOF)
	return fmt.Sprint("OK ", strings.Join(s.Trailer().Get("x-got"), ""))
}

// hints tells whether the 103 came through, and the answer.
func (p *playground) hints(http2 bool) string {
	early := ""
	ctx := httptrace.WithClientTrace(p.t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		early += fmt.Sprint(" early ", code, h)
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.page("/hints"), nil)
	require.NoError(p.t, err)
	res, err := p.client(http2).Do(req)
	require.NoError(p.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(p.t, err)
	return fmt.Sprint(res.StatusCode, " ", string(text), early)
}

// socket sends messages up to 4 MiB, of which each comes back.
func (p *playground) socket() string {
	d := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // its own certificate, on loopback
	c, res, err := d.DialContext(p.t.Context(), "ws"+strings.TrimPrefix(p.page("/ws"), "http"), nil)
	require.NoError(p.t, err)
	defer c.Close()
	res.Body.Close()
	for _, size := range []int{1, 64 << 10, 400 << 10, 4 * mib} {
		message := bytes.Repeat([]byte("w"), size)
		require.NoError(p.t, c.WriteMessage(websocket.BinaryMessage, message))
		_, back, err := c.ReadMessage()
		require.NoError(p.t, err)
		require.True(p.t, bytes.Equal(message, back))
	}
	return fmt.Sprint(res.StatusCode, " echoed")
}

// tunnel sends 100 times 64 KiB through a tunnel, which come back.
func (p *playground) tunnel(http2 bool) string {
	r, w := io.Pipe()
	at, err := url.Parse(p.page(""))
	require.NoError(p.t, err)
	var back io.Reader
	var there io.Writer = w
	code := 0
	if http2 {
		res, err := p.client(true).Do(&http.Request{Method: http.MethodConnect, URL: at, Host: "test:80", Body: r, ContentLength: -1, Header: http.Header{}})
		require.NoError(p.t, err)
		defer res.Body.Close()
		code, back = res.StatusCode, res.Body
	} else {
		conn, err := net.Dial("tcp", p.addr)
		require.NoError(p.t, err)
		if p.encrypted {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its own certificate, on loopback
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "CONNECT test:80 HTTP/1.1\r\nhost: test:80\r\n\r\n")
		require.NoError(p.t, err)
		code, back, there = answer(p.t, conn).StatusCode, conn, conn
	}
	n := 0
	for range 100 {
		_, err := there.Write(make([]byte, 64<<10))
		require.NoError(p.t, err)
		got, err := io.ReadFull(back, make([]byte, 64<<10))
		require.NoError(p.t, err)
		n += got
	}
	require.NoError(p.t, w.Close())
	return fmt.Sprint(code, " ", n)
}
