// Command go calls an expert of the swarm through a node, with nothing but the standard library: the Open Inference Protocol over HTTP,
// tensors as binary behind the JSON. It sends a row of ones and prints what comes back.
//
//	go run ./examples/go http://127.0.0.1:7575 tiny-mixtral-text/0/3 128
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: go URL NAME HIDDEN")
		os.Exit(2)
	}
	hidden, _ := strconv.Atoi(os.Args[3]) // the node says what is wrong with 0
	x := make([]float32, hidden)
	for i := range x {
		x[i] = 1
	}
	y, err := call(os.Args[1], os.Args[2], x)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(y)
}

// client gives up a little later than the node, which says why.
var client = http.Client{Timeout: 6 * time.Second}

// call returns the expert's output for one row.
func call(url, name string, x []float32) ([]float32, error) {
	header := fmt.Sprintf(`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"parameters":{"binary_data_size":%d}}],`+
		`"parameters":{"binary_data_output":true,"timeout_ms":5000}}`, len(x), 4*len(x))
	body, err := binary.Append([]byte(header), binary.LittleEndian, x)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, url+"/v2/models/"+name+"/infer", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Inference-Header-Content-Length", strconv.Itoa(len(header)))
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, reply)
	}
	length, _ := strconv.Atoi(resp.Header.Get("Inference-Header-Content-Length")) // of the JSON in front
	if len(reply) != length+4*len(x) {
		return nil, fmt.Errorf("expected %d bytes behind the JSON, found %d", 4*len(x), len(reply)-length)
	}
	y := make([]float32, len(x))
	_, err = binary.Decode(reply[length:], binary.LittleEndian, y)
	return y, err
}
