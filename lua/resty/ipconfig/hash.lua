-- Arithmetic modulo 2^32 on numbers as the bit library has them: signed.

local bit = require "bit"


local band   = bit.band
local bxor   = bit.bxor
local lshift = bit.lshift
local rshift = bit.rshift
local tobit  = bit.tobit


local _M = {}


-- The product of two numbers modulo 2^32, the first one signed.
local function multiplied(a, b)
    local high = lshift(tobit(rshift(a, 16) * b), 16)
    return tobit(band(a, 0xffff) * b + high)
end


-- murmur3's fmix32: each bit of the input changes each bit of the output half
-- of the time.
function _M.mixed(h)
    h = multiplied(bxor(h, rshift(h, 16)), 0x85ebca6b)
    h = multiplied(bxor(h, rshift(h, 13)), 0xc2b2ae35)
    return bxor(h, rshift(h, 16))
end


return _M
