// What the figures of pieces and CARs are held against: go-fil-commp-hashhash and go-car, each over the bytes that Floe's
// benches give it, by its own processor time. `tests/bench/run` builds it; the benches start it.
//
//	commp MEBIBYTES   hashes so many from memory, once for each line of its input
//	pack FILE         reads a CAR and checks each block, writes a CAR of them, and hashes that, once for each line
//
// Each answer is a line: seconds of processor time, and the commitment in hexadecimal.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"syscall"

	commp "github.com/filecoin-project/go-fil-commp-hashhash"
	carv2 "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: commp MEBIBYTES, or pack FILE")
	}
	round := func() (*commp.Calc, error) { return pack(os.Args[2]) }
	if os.Args[1] == "commp" {
		mebibytes, err := strconv.Atoi(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		payload := payload(mebibytes << 20)
		round = func() (*commp.Calc, error) { return hash(payload) }
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		before := cpuSeconds()
		calc, err := round()
		if err != nil {
			log.Fatal(err)
		}
		commitment, _, err := calc.Digest()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%.6f %x\n", cpuSeconds()-before, commitment)
	}
}

// The bytes of crates/piece/benches/commp.rs.
func payload(length int) []byte {
	payload, state := make([]byte, length), uint64(7)
	for i := range payload {
		state = state*6364136223846793005 + 1442695040888963407
		payload[i] = byte(state >> 56)
	}
	return payload
}

func hash(payload []byte) (*commp.Calc, error) {
	calc := new(commp.Calc)
	for at := 0; at < len(payload); at += 1 << 20 {
		if _, err := calc.Write(payload[at:min(at+1<<20, len(payload))]); err != nil {
			return nil, err
		}
	}
	return calc, nil
}

func pack(name string) (*commp.Calc, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	blocks, err := carv2.NewBlockReader(bufio.NewReaderSize(file, 1<<20))
	if err != nil {
		return nil, err
	}
	calc := new(commp.Calc)
	to := bufio.NewWriterSize(calc, 1<<20)
	// Both write each block once, in the order in which they come.
	car, err := storage.NewWritable(to, blocks.Roots, carv2.WriteAsCarV1(true), carv2.AllowDuplicatePuts(true))
	if err != nil {
		return nil, err
	}
	for {
		block, err := blocks.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := car.Put(context.Background(), block.Cid().KeyString(), block.RawData()); err != nil {
			return nil, err
		}
	}
	if err := car.Finalize(); err != nil {
		return nil, err
	}
	return calc, to.Flush()
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	seconds := func(time syscall.Timeval) float64 { return float64(time.Sec) + float64(time.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}
