s=open('world_test.go').read()
s=s.replace("			here = append(here, math.Abs(w.m.innovation))\n","			here = append(here, math.Abs(w.m.innovation))\n			if DBGW == int(seed)+1 && i < 160 && i%2 == 0 { m := &w.m; fmt.Printf(\"%d nu=%.1f base=%.1f/%.1f kept=%.1f+-%.1f noise=%.1f wander=%.1f\", i, m.innovation/1048576, m.x[0]/1048576, w.base/1048576, m.x[1]/1048576, math.Sqrt(m.p[1][1])/1048576, m.noise, m.wander); for k := range n { fmt.Printf(\"  %.0f: %.0f+-%.0f/%.0f\", n[k], m.mean(k+1)/1024, m.sd(k+1)/1024, w.prices[k]/1024) }; fmt.Println() }\n")
s=s.replace('import (','import (\n	"fmt"\n	"os"\n	"strconv"',1)
s+='\nvar DBGW, _ = strconv.Atoi(os.Getenv("DBGW"))\n'
open('world_test.go','w').write(s)
