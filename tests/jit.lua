-- SPDX-License-Identifier: Apache-2.0
-- Work for LuaJIT that makes it compile, patch and throw away machine code: what it prints depends on
-- nothing but its argument.
local ffi = require("ffi")
local bit = require("bit")

local seed = tonumber(arg[1])
local function random(limit)
    seed = (seed * 1103515245 + 12345) % 2147483648
    return seed % limit
end

local function primes(limit)
    local sieve, count = ffi.new("uint8_t[?]", limit + 1), 0
    for n = 2, limit do
        if sieve[n] == 0 then
            count = count + 1
            for multiple = n * n, limit, n do sieve[multiple] = 1 end
        end
    end
    return count
end

local function orbit(x, y)
    local a, b, steps = 0.0, 0.0, 0
    while a * a + b * b < 4 and steps < 200 do
        a, b, steps = a * a - b * b + x, 2 * a * b + y, steps + 1
    end
    return steps
end

local function mandelbrot(size)
    local sum = 0
    for row = 0, size - 1 do
        for column = 0, size - 1 do
            sum = sum + orbit(column / size * 3 - 2, row / size * 2 - 1)
        end
    end
    return sum
end

local function sorted(count)
    local list = {}
    for n = 1, count do list[n] = random(1000000) end
    table.sort(list, function(a, b) return a > b end)
    local hash = 0
    for n = 1, count do hash = bit.bxor(bit.rol(hash, 5), list[n]) end
    return bit.tohex(hash)
end

local function words(count)
    local seen, parts = {}, {}
    for n = 1, count do
        local word = string.format("%x", random(5000))
        seen[word] = (seen[word] or 0) + 1
        if seen[word] == 2 then parts[#parts + 1] = word:rep(2):upper() end
    end
    return #parts .. " " .. table.concat(parts):sub(1, 60)
end

-- Code of its own for each round, whose traces are made, linked, patched at their exits, and forgotten.
local function made(round)
    local source = ("local n = ... local t = 0 for i = 1, n do if i %% %d == 0 then t = t + i else t = t - %d end "
        .. "end return t"):format(round % 7 + 2, round)
    return loadstring(source)(20000)
end

local function generate(count)
    return coroutine.wrap(function() for n = 1, count do coroutine.yield(n * n % 97) end end)
end

local total = 0
for round = 1, 60 do
    total = total + made(round)
    for value in generate(50) do total = total + value end
    if round % 4 == 0 then jit.flush() end
    if round % 10 == 0 then jit.off() elseif round % 10 == 1 then jit.on() end
end
jit.on()
print("made", total)
print("primes", primes(300000))
print("mandelbrot", mandelbrot(120))
print("sorted", sorted(30000))
print("words", words(40000))
print("jit", (jit.status()))
